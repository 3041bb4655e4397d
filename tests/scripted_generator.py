"""What stands for an engine where its answers are known beforehand."""

from verl.eval.results import concluded


class OneByOne:
    """Answers every request by its own ``generate``, one after the other."""

    truncated = 0

    def answer(self, requests):
        for number, request in enumerate(requests):
            options = {"max_new_tokens": request.max_new_tokens, "desc": request.desc}
            yield number, self.generate(request.prompt_ids, **options)


def rows_of(part, data, generator):
    """What a part that asks makes of the generator's answers."""
    interview = part.run(data, generator)
    [(_, answers)] = generator.answer([next(interview)])
    return concluded(interview, answers)
