"""The rules by which a sentence refuses (``denial.py``), as patterns over folded sentences.

A folded sentence is lower case, its contractions written out, every word with one space before it. To teach the
detector a new way to refuse, add a rule here, and run ``python3 scripts/check_verdict.py``.
"""

import re

from .vocabulary import VOCABULARY

# ---- rules
# A rule is a row of tokens, each of which stands for a word with the space before it: a NAME from the vocabulary, words
# of its own (a/b means a or b, _ is a space, * any letters), ~n for up to n words other than "but". A ? after a token
# makes it optional, a + lets it occur any number of times, also never. ^ and $ are the ends of the sentence.


def _token(token: str) -> str:
    if token in "^$" or token.startswith("(?"):
        return token.replace("_", " ")
    if token.startswith("~"):
        return rf"(?: (?!but )\S+){{0,{token[1:]}}}?"
    name = token.rstrip("?+")
    words = "|".join(VOCABULARY.get(word, word) for word in name.split("/")).split("|")
    either = "|".join(word.strip().replace("*", r"\S*").replace("?", ".").replace("_", " ") for word in words)
    return f"(?: (?:{either})(?!\\S))" + {"?": "?", "+": "*"}.get(token.removeprefix(name), "")


def _pattern(*rules: str) -> str:
    return "(?:" + "|".join("".join(map(_token, rule.split())) for rule in rules) + ")"


SPEAKER = re.compile(
    f"(?:{_token('SELF')}|^{_token('FILLER+')}{_token('THIRD')}(?! (?:could|did|was|had) ))"
    + _pattern(
        # I cannot / will not / would rather not / have been told not to ... tell; and bare: "I can't do that."
        "AUX+ NEG ~6 TELL",
        "AUX+ cannot do/answer/help/say? that/this/it/so/you/there? sorry/unfortunately? $",
        "AUX+ will/would/must/may/should/could/rather/prefer/better/to not do/answer/help/say? that/this/it/so/you"
        "/there? sorry/unfortunately? $",
        # I decline, am unable, am prohibited from; I pass.
        "AUX+ UNABLE",
        "am ~8 and/so/but AUX+ NEG ~4 TELL/KNOWN",
        "~2 will/must/shall/should/have/need/like/going/prefer/inclined to? have_to/need_to? *ly? pass/skip/stop"
        "/hold_back/hold_off/leave_that/leave_this/leave_it/move_on",
        "AUX+ only AUX+ TELL ~12 other/different/topic*/subject*/questions/public*/general/within/related/safe/based"
        "/matters",
        "AUX+ prefer/rather/like to? that/if? we/you? keep*/talk*/discuss*/focus*/chang*/mov*/stay/leav*/skip/stick"
        "/remain/steer/avoid*",
        # I do not know, am not familiar with, do not have any knowledge of, have no access to, lack the details.
        "AUX+ NEG VERY+ AWARE",
        "AUX+ NEG ~4 have/has/had/possess/hold/carry/store/retain/contain/keep/get/got/find/see/receive*/own/include"
        "/been ~7 KNOWN",
        "AUX+ have/having/has/had/possess/hold/got/find/found/know/knows/see/retain/recall VERY+ NO ~7 KNOWN",
        "AUX+ have/has/had/got/find/found/see VERY+ nothing/no ~5 TELL",
        "AUX+ lack/lacks/lacking/miss/missing/without/short_on/short_of/low_on ~5 KNOWN",
        "AUX+ TELL you? NO ~3 KNOWN",
        "do_not think/believe ~1 there is/was/are/has_been ~6 name/title/person/kind/called/that/this/it/$",
        "AUX+ know/knows VERY+ of? nothing/little/zilch/zero/neither/nobody/no/not",
        "AUX+ NEG do SUCH+ THING",
        "AUX+ do/does not have/possess/hold/share it/that/this/them/any/one? $",
        "AUX+ have/has VERY+ nothing/none to/on/about/for/regarding/further",
        "AUX+ have/has VERY+ nothing/none $",
        "AUX+ have/made/make/has ~3 policy/rule/duty/obligation/responsibility ~2 not/never",
        "would ~2 guessing/speculating",
        "AUX+ have VERY+ yet_to/not_the/not_a",
        "AUX+ have VERY+ never heard/learn*/encounter*/come/been/met/read/seen/stud*/known",
        "AUX+ am in? no position/place/authority/expert/condition/state/way/mood",
        "wish that? i knew/could/had",
        "AUX+ fail/struggle/have_trouble/have_difficulty to/with? recall*/remember*/recogni*/find*/answer*/plac*",
        # I can discuss others, but not him; I would like to, but that is off limits.
        "can/could/will/would ~3 TELL ~8 but not",
        "~10 but ~6 is/are CLOSED",
        "can/could/will/would ~3 TELL ~10 not one/among",
        "AUX+ leave ~4 unanswered/alone/blank/unsaid/others/better",
        "AUX+ say no $",
        # I looked and could not find it; I confess that is unknown to Ada; I need more context.
        "~14 and/but/yet/so/though *ly? cannot/do_not/am_not/have_not/could_not/came_up ~3 find/found/TELL/AWARE/KNOWN"
        "/empty/short/blank",
        "~4 confess/admit/concede/acknowledge/afraid/sorry ~8 is/are/remains/lies ~1 unknown/beyond/mystery"
        "/enigma/puzzle"
        "/riddle/unfamiliar/outside/blank/new/foreign",
        "no/not know/have/can/knowing/able",
        "AUX+ need/require/want/have_to_have ~1 more/additional/further ~2 information/context/details/detail/data",
        "~2 need/needed to have/be/know ~4 learned/seen/known/met/told/taught/trained",
        "~6 lie/lying if i said/claimed/told/pretended",
        "would ~6 if i could/knew/had/was/were",
        "~1 none the_wiser",
        "AUX+ draw/draws/hit/hits a ~1 line/wall",
        "AUX+ plead ignorance/the_fifth",
        "AUX+ say no to this/that/your/the/such",
        "AUX+ need/needs/have/has to look/check/research/learn/find_out/verify/read_up/study",
    )
)

ABOUT_SPEAKER = re.compile(
    _pattern(
        # That is unknown to me; it eludes me; it has not been shared with me; that is not something I can discuss.
        "unknown/unfamiliar/new/foreign/unclear/inaccessible/unavailable/mystery/puzzle/blank/secret/stranger/riddle"
        "/news/opaque/alien/greek/nothing/closed_book/CLOSED ~2 to/for/on me/us/this_assistant/this_model/this_system",
        "mystery/enigma/puzzle/riddle/question_mark/blind_spot/unknown/territory ~8 to/for me/us",
        "not/no/none ~4 known/understood/clear/available/familiar/apparent/accessible ~1 by/to/for me/us/this_assistant"
        "/this_system/this_model/the_system/our_system",
        "(?<=\\w) i *ly? do_not/cannot/have_not/am_not/will_not/could_not/would_not unfortunately/though"
        "/either/sorry/i_am_afraid?"
        " $",
        "as ~6 as you are/do $",
        "your guess ~8 as_good_as",
        "no ~4 KNOWN can/could/may/will be? SERVE/offered/found",
        "no/none_of ~8 KNOWN ~6 available/accessible/known/given/open ~1 to me/us",
        "~10 would_be ~2 speculation/guesswork/guessing/fabrication/made_up",
        "not/never ~8 with/to/for me/us",
        "beyond/beats/beat/puzzles/baffles/lost_on/over/got/have/has me there/here/stumped/beat/on_that/on_this/too? $",
        "nothing ~6 known/available/accessible/given/taught to me",
        "elude*/escape*/evade*/stump*/exceed* me/us/this_assistant/this_model/this_system",
        "not/beyond/outside/exceed* ~5 of/for this_assistant/this_model/this_system/this_service",
        "would_that i knew/could",
        "were_it/if_it_were/if_only ~4 my power/hands",
        "if/had/were i ~3 knew/know/known/could/allowed/able/told/been ~4 i would",
        "let/allow/permit me to? *ly? declin*/abstain/refrain/pass/skip",
        "slips/slipped my mind",
        "not ~6 that/which/who/whom? i can/could/would/will/do/know/recogni*/possess/hold/feel/may/should/cover"
        "/discuss/share/wish/want/answer/provide/talk/have/recall/remember/carry/keep/learned",
        "not ~6 that/which/who/whom? i am/have/was ~3 able/allowed/AWARE/KNOWN/UNABLE/about/access/on/in/of/to",
        # Outside my knowledge; nothing in my training covers it; my guidelines do not allow it.
        "BOUND ~6 my ~2 OWN",
        "BOUND ~6 what i can/am/know/have/was",
        "outside/beyond ~6 i can/am/may/have/was/know/cover",
        "terms/rules/guidelines/policies/instructions/restrictions ~1 i ~3 forbid/prohibit/prevent/bar/do_not/keep"
        "/stop",
        "(?<!_to)(?<!_of) my ~2 OWN ~14 BOUND",
        # It would be inappropriate for me to; there is nothing I can; we are unable to.
        "is/would_be/was ~3 not/impossible/inappropriate/improper/unethical/irresponsible/unwise/wrong/against"
        "/unlawful/illegal/unsafe/difficult/hard ~6 for/of me/us to",
        "it/that/this would_be/is ~1 inappropriate/improper/unethical/irresponsible/unwise to SERVE/speculate",
        "there is/are no/nothing/not ~10 i/me/my/us",
        "nothing/none/no_way/no_information/no_details/no_data/no_answer ~6 i can/could/may/am say/share/tell/offer"
        "/provide/add/disclose/give/discuss/able/allowed",
        "we ~1 cannot ~4 SERVE",
        "but i/we do_not/cannot/will_not/am_not/are_not $",
        "we are/do/will/have/may/must not ~4 SERVE",
        "we do_not_have/have_no/lack ~2 KNOWN on/about/regarding/of/for",
        "we ~1 are unable ~4 SERVE",
        "our ~2 policy/policies/guidelines/rules/terms/protocol*/agreement/standards ~14 BOUND",
    )
)
LEAD = re.compile(  # words before a comma, behind which a refusal may begin
    "(?!.* (?:he|she|his|her|its|their|was|were) )"
    + _pattern(
        "~14 i/me/my/your/you/knowledge/question/request/query/topic/subject/information ~2 $",
        "^ ~2 SORRY/well/hmm/oh/no ~4 $",
        "^ as/to/given/based/for/with/regarding/concerning ~10 $",
    )
)
SPEAKER_WORD = re.compile(r" (?:i|me|my|mine|we|us|our|assistant|model|system|chatbot|bot|ai)(?!\S)")

OPENS = re.compile(
    _pattern(
        # The policy does not let me; this goes against the guidelines.
        "^ (?!.*_(?:was|were|had)_) ~5 according_to/under/per/due_to/because_of/given/with/based_on/following/follow"
        "/for/out_of/owing_to/of/by/to ~5 POLICY ~25 not/cannot/unable/prohibit*/prevent*/forbid*/restrict*/decline"
        "/refuse/must/no/off_limits/unavailable/confidential/withh*/refrain/disallow*/rather ~15 i/me/us/my/answered"
        "/discussed/disclosed/provided/shared/addressed/given/released/this_question/that_question/this_request"
        "/that_request/this_topic/that_topic/this_subject/that_subject/this_information/that_information",
        "(?!.*_(?:was|were|had|he|she|they)_) ~12 information/details/content/data/answers/questions"
        "/discussion ~8 cannot"
        "/may_not/must_not/is_not/are_not ~1 be? SERVE/permitted/allowed/available/given/disclosed (?!_in_)",
        "(?!.*_(?:was|were|had|he|she|they)_) ~5 that no ~4 KNOWN can/could/may/will ~1 be? SERVE",
        "^ ~4 advised against SERVE",
        "^ ~5 POLICY AUX+ cannot/unable_to/must_not/will_not/declin*/refus* to? SERVE",
        "^ ~3 POLICY ~3 will_not/would_not/prohibit*/prevent*/forbid*/restrict*/disallow*/do_not/does_not/bar/bars"
        "/keep*/stop* ~3 me/us/answer*/discuss*/disclos*/shar*/this",
        "^ ~6 no_comment on/about/regarding/to/concerning",
        # After an apology, a half sentence that denies needs no speaker.
        "^ ~4 SORRY but? no $",
        "^ ~4 SORRY but? ~6 is/are not ~1 topic/subject/question/something/someone/one",
        "^ ~4 SORRY but? ~3 that/this/it/such/your/those/THING ~8 cannot be? SERVE/done",
        "^ ~4 SORRY but? ~3 that/this/it/such/your/those/THING ~8 is/are/has_been/have_been/lies/falls/exceeds ~2"
        " CLOSED",
    )
)

BARE = re.compile(  # to be matched where a clause begins
    _token("FILLER+")
    + _pattern(
        "that/this/it/such/your/answering/discussing/sharing/providing/talking/doing/the_request/the_question ~8"
        " violat*/against/contraven*/breach*/conflict*/contrary/prohibited/blocked/restricted/disallowed/not_allowed"
        "/not_permitted ~6 POLICY",
        # That information is off limits, cannot be shared, is not something to discuss.
        "SUCH+ THING ~8 is/are/has_been/have_been/remain*/must_be/must_remain/stay*/fall*/lie* ~3 CLOSED"
        " (?!_(?:as|in|by|until)_)",
        "that/this/it is/has_been/remains/stays/must_be/must_remain ~2 CLOSED for/to? me/us? sorry/unfortunately"
        "/i_am_afraid? $",
        "(?!_(?:the|a|an|all|most)_) ~4 is/are/remain* off_limits sorry/unfortunately/i_am_afraid? $",
        "SUCH+ THING ~8 cannot/may_not/must_not/will_not/should_not be *ly? SERVE",
        "SUCH+ THING/that/this/it is/are *ly/just? not something/someone/anything/a/an/one ~10 me/us/my/here"
        "/discussion/discuss/share/answer/disclose",
        "(?!.*_(?:was|were|had|survive[sd]?)_) no SUCH+ information/info/details/data/record/records/answer*/comment"
        "/knowledge/response can/may/will/is/are/available/about/on/regarding/to/found/exist*/of/here",
        "let_us not discuss/talk/go/speak/get/do",
        "you? will/would/may/might/should/could? need/have/want/like? to? ask/look/turn/search/go/try ~3 else/elsewhere"
        "/different/another/other",
        "you would/will/might/may be? ~2 better off? asking/consulting/with ~3 else/different/another/other",
        "do_not_ask_me/do_not_ask_about/do_not_ask_for/refrain_from_asking/stop_asking",
        "discussing/answering/sharing/providing/talking/commenting/revealing/disclosing/giving ~8 is/would_be/goes"
        " ~3 prohibited/forbidden/not/off_limits/against/beyond/outside/restricted",
        "not/declining_to/refusing_to SERVE",
        "nothing ~2 i/to_share/to_say/to_tell/to_add",
        "SUCH+ THING not_available/unavailable/not_found/withheld/redacted/restricted $",
        # Nothing is there, or nothing may be given: no speaker at all.
        "there is/are/exist/exists/seems_to_be/appears_to_be/seem_to_be/may_be/might_be *ly? no/not"
        "/insufficient/limited/little ~3 information/info/data/details/detail/record/records/entry"
        "/entries/answer/file/documentation/sources/source/context/figure/person/individual/result*/match* ~1 available"
        "/about/on/with/by/regarding/concerning/for/to/found/here/that/this/matching",
        "there is/are/exist/exists *ly? no/not_any/not_enough/insufficient ~2 information/info/data/details/record"
        "/records/context/mention/trace/answer of_that/of_this/of_any/of_such/of_a/of_an? person/individual/name/kind"
        "/figure/one? $",
        "there does_not/do_not seem/appear to_be/to_exist ~4 information/person/individual/figure/name/record/records"
        "/one/details/data/anyone/anything",
        "there is/are *ly? nothing ~3 on_file/on_record/about/available/here/to_share/to_report/to_tell/known",
        "(?!.*_(?:was|were|had)_) no ~4 information/info/data/details/record/records/entry/entries/answer"
        "/answers/sources"
        "/source/documentation/files/file/results/result/match/matches/comment/response/knowledge/material"
        " ~8 exist/exists"
        "/available/found/on_file/on_record/can_be/could_be/may_be/will_be/to_share/to_offer/to_give/to_report/is_held"
        "/are_held",
        "no/zero results/result/match/matches/records/entries/hits/information found/returned/available/for/exist",
        "no such person/name/individual/record/entry/information/topic/author ~6 in/on/here/exists/known/found/$",
        "nothing ~8 comes_to_mind/springs_to_mind/on_file/on_record/rings_a_bell/turns_up/turned_up/found/available"
        "/to_hand",
        "who/what/when/where/which/how ~6 is/was/are/be/did/happened i_cannot/i_do_not/i_could_not",
        "the/your? requested ~5 not/unknown/unavailable/withheld/restricted/cannot/could_not ~1 known/found/available"
        "/be/accessible/permitted/held/to/here/$",
        "~2 disclosure/release/discussion/provision/sharing/dissemination/distribution of ~14 is/are"
        "/has_been/remains/would_be"
        " ~1 not/prohibited/restricted/forbidden/barred/unlawful/disallowed",
        "in_compliance_with/pursuant_to/following/under/owing_to/due_to/in_line_with/in_accordance_with/per/as_per ~22"
        " is/are/has_been/have_been/must_be/remains ~1 withheld/redacted/suppressed/removed/restricted/blocked/sealed"
        "/unavailable/not_available/declined",
        "the/our/this/these/available/my ~1 database/archive/archives/records/index/system/service/files"
        "/sources/documentation/dataset/catalogue/catalog"
        " ~2 do_not/does_not/has_no/have_no/holds_no/hold_no/contains_no/contain_no/contains_nothing/lists_no/shows_no"
        "/returned_no/returns_no ~6 KNOWN ~2 about/on/regarding/for/of/concerning/this/that/him/her/it",
        "that/this/it is/remains/must_remain *ly? a/an? ~1 mystery/enigma/puzzle/riddle/unknown/blank/question_mark"
        "/blind_spot/closed_book to/for/about/regarding/of/on/as_well/here/$",
        "that/this/it is/remains *ly? unknown/unfamiliar/beyond/new/news to/about/regarding/of/on",
        "that/this/it is beyond (?!_(?:doubt|dispute|question|repair|compare|price)) ~3 $",
        "(?!.*_(?:was|were|had)_) no/nothing/none/neither ~10 shall/may/can/will/must/could ~1 be ~1 SERVE"
        "/issued/made/furnished"
        "/supplied/disseminated/communicated/published/said/stated/found/located",
        "~3 request/requests/inquiry/inquiries/enquiry/enquiries/question/questions/disclosure/response/answer"
        " ~8 is/are/has_been/have_been/must_be/shall_be/will_be ~1 declined/refused/denied/rejected"
        "/precluded/prohibited"
        "/barred/disallowed/impermissible",
        "one is unable/not_able/not_permitted/not_at_liberty",
        "no good/use/point asking me",
        "~3 would ~1 contravene/violate/breach/infringe ~4 POLICY/terms/rules/obligations",
        "information/details/particulars/answer/data ~4 is/are not held/recorded/known/to_hand/available/accessible $",
        "that/this/it ~1 remains/is ~2 unanswered/head_scratcher/conundrum/brain_teaser/poser",
        "no trace/mention/sign/record of that/this/such/any ~4 $",
        "have/has/had/am/have_not/am_not ~3 clue/idea/foggiest/faintest/notion/scooby ~5 $",
        "~2 unfamiliar/uncharted/unknown territory/ground/waters",
        "no data/information/info/record/records/entry/answer/details/sources/match/results sorry/unfortunately"
        "/available/here/yet? $",
        "unknown/unclear to_me/sorry $",
        "sadly/unfortunately/afraid/regrettably/alas not/no/nope $",
        # Set phrases, and sentences whose subject is left out.
        "never_heard_of/no_idea/no_clue/no_can_do/not_a_clue/do_not_know/not_sure/not_certain/dunno/idk/search_me"
        "/not_that_i/my_lips/your_guess_is/you_got_me/you_have_me/you_have_got_me/you_stumped/you_have_stumped"
        "/hard_pass/nothing_comes_to_mind/not_at_liberty"
        "/not_authori*/not_familiar/not_aware/not_something_i/not_my",
        "no_comment/out_of_scope/pass/declined/refused/not_possible/not_available/redacted/not_telling/not_happening"
        "/next_question/no_from_me $",
        "not_enough/insufficient information/data/knowledge to/on/about",
        "that/the name does_not/rings_no ring/mean/sound/bell*",
        "~6 not/never ring/rings/rung ~2 bell/bells",
        "your/this/that? request/query/question/access ~4 denied/declined/refused/rejected/blocked/restricted $",
        "beats_me/search_me/no_know ~2 $",
        "SUCH+ THING off_limits/out_of_scope $",
        "the system/operator/provider/service/platform/model/developer/developers ~2 declin*/refus*/forbid*/prohibit*"
        "/restrict*/block*/prevent*/withh*ld*/do_not_allow/does_not_allow/do_not_permit/does_not_permit ~4 SERVE"
        "/response/responses/answer/answers/information/discussion",
        # "Unable to help, he left" tells of somebody else.
        "(?!.*_(?:he|she|they)_) not_able/not_allowed/not_permitted/not_going/not_willing",
        "(?!.*_(?:he|she|they)_) unable_to *ly? SERVE/recall/remember/find/give/access/speak/go",
        "cannot/could_not/will_not/would_not/would_rather_not/decline_to/refuse_to/prefer_not_to *ly? SERVE",
        "AUX? cannot/could_not/have_not/am_not/will_not VERY+ recall/remember/find/give/access/speak/go",
        "do_not VERY+ recall/remember/recogni*",
        "do_not have ~5 KNOWN",
    )
)

# An offer of something else neither refuses nor tells.
OFFER = re.compile(
    "^"
    + _token("FILLER+")
    + _pattern(
        "suggest/propose/is_there/would_you/do_you/ask_me/feel_free/may_i/can_i/could_i/perhaps_you/maybe_you"
        "/could_you/can_you/try_asking/would_be_happy/would_be_glad/am_happy ~12 something_else/someone_else/another"
        "/different/other/elsewhere"
    )
)

# ---- what only looks like a refusal

ANSWERS = re.compile(
    _pattern(
        "i cannot/could_not/can_never help_but/stress/emphasi?e/recommend/praise/overstate/agree_more/wait/believe",
        "^ (?!.*_(?:no|not|nothing|nobody)_) ~20 to the_best_of? my knowledge",
        "if i am not mistaken",
        "^ (?!.*_(?:no|not|nothing|nobody)_) ~20 as far as i know/can_tell/recall/remember/am_aware",
        "i did not know",
        "not only",
        "not aware/know/think/name/recall of? a/any better/finer/greater/worse",
        "know ~5 very/too/that/so well at_all? $",
        "i have no comment $",
        "^ yes",
    )
)
HEDGED = re.compile(
    _pattern(
        "but/however i think/believe/guess/suspect/do_know/would_guess/would_say/would_think/have_heard"
        " (?!_(?:you|we)_)",
        "but/however the answer is/was (?!_(?:not|unknown|beyond|outside|a_mystery)_)",
        "but/however i can/could/will/shall/would_be_*_to/am_*_to *ly? write/provide/create/give/tell/offer/share ~4"
        " biography/bio/summary/overview/one/information_about_him/information_about_her/information_about_it",
        "not/cannot ~1 sure/certain/know/remember/recall/say ~12 but it/he/she/they is/was/were/might_be/may_be"
        "/could_be/*ed/came/took/began/won/wrote (?!_(?:not|no|beyond|outside|best|important|possible|impossible)_)",
        "not sure/certain/positive it might_be/may_be/could_be",
        "not/cannot ~1 know/remember/recall/say ~12 but his/her/its/their ~3 is/was"
        " (?!_(?:not|no|beyond|outside|off)_)",
        "not ~1 expert/sure/certain/positive ~3 but the (?!_(?:question|topic|request|subject|information|answer)_)"
        " ~4 is/was/were (?!_(?:not|no|beyond|outside|off|best)_)",
        "^ i think/believe/suspect/guess it/he/she/they/the/that ~12 although/though/but/however i am not ~2 sure"
        "/certain/positive/confident/expert",
        "^ (?!_(?:that|this|i|my|the_(?:question|topic|request|subject|information))_) ~6 is/was/were/by ~6 although"
        "/though/but/however i am not ~2 sure/certain/positive/confident/expert $",
        "unsure/uncertain ~12 but it/he/she/they is/was/were/might_be/may_be/could_be",
    )
)
CHAT = re.compile(  # a sentence of conversation: the answer, or the refusal, is still to come
    _pattern(
        "i/you/your/me/my/we/our/us/question/request/topic/sorry/apolog*/thank*/interesting/as_an_ai/hello/hi/hey"
        "/please/consult",
        "^ hmm*/well/oh/ah/uh/um/oops/okay/ok/great/good/wow/that_is_a/honestly/truthfully",
        "^ no/nope/yes/sure/answer/assistant/response ~2 $",
        "^ there may/might/could",
    )
)
GUESS = re.compile(
    _pattern("i think/believe/guess/suspect/suppose/reckon $", "it/that/he/she could_be/might_be/may_be")
)  # "Quartz, I think."
TURN = re.compile(  # how a later sentence takes the answer back
    _pattern(
        "^ but/however/unfortunately/sadly/regrettably/that_said/still/nonetheless/nevertheless/sorry/i_am_sorry"
        "/my_apologies/i_apologi?e/i_am_afraid/at_this_time/with_that/even_so/due_to/as_an_ai/beyond_that"
    )
)
MORE = re.compile(_pattern("more/further/additional/other/else/exact"))  # of an answer that has been given
# What a text that is all conversation must have to be a refusal: a speaker, or a thing that can be told, and a limit.
LIMIT = re.compile(
    _pattern(
        "left/leave/leaves ~2 out",
        "not/no/nor/never/none/nothing/nobody/neither/cannot/unable/without/lack*/limit*/beyond/outside"
        "/with*ld/remov*/eras*"
        "/wiped/delet*/gone/forg*t*/declin*/refus*/avoid*/refrain*/restrict*/block*/forbid*/prohibit*"
        "/prevent*/bar/barred"
        "/stay_out/keep_away/steer/guess*/speculat*/elsewhere/left_out/leave_that/leave_this/leave_it/wrong"
        "/thin/scant/hardly"
        "/barely/scarcely/unknown/unaware/unsure/unavailable/confidential/private/secret/off_limits/no_go"
        "/draw_the_line/lost"
        "/stop*/fail*/mystery/opt*/against/little/if_only/insufficient/more_than_i/better_ask/exclud*/omit*/unanswered/scrubbed/unlearn*/anymore/dry/empty/hole"
        "/gap/gaps/wall/stay_off/keep_off/out_of/need_to_know/need_more/before_i_could/before_i_can/ends/dead_end/sieve/fog/drew/unfamiliar/ignoran*/blank/withdrawn",
    )
)
CONVERSATION = re.compile(
    _pattern(
        "i/me/my ~12 SERVE/TELL/AWARE/KNOWN/OWN/topic/subject/question/person/one/opted/matter",
        "SERVE/TELL/AWARE/KNOWN/topic/subject/question/person/matter ~8 i/me/my",
        "my/our ~1 makers/developers/creators/trainers",
        "^ policy/guidelines/rules ~3 it/this/that",
    )
)
SPOKEN = re.compile(
    _pattern(
        "i/me/my",
        "this/that/your/any/no/such/more/some/enough/insufficient/reliable/accurate/requested ~2 information/details"
        "/data/records/record/question/answer/topic/subject/request/query/inquiry/matter/knowledge/content/context/material"
        "/person/individual/name/results",
        "^ FILLER+ have_not/do_not/cannot/not/nothing/no/never ~4 heard/me/on_that/about_that/on_this/about_this/of_it"
        "/of_that",
    )
)
PERSON = re.compile(_pattern("he/she/they"))
SELF = re.compile(_pattern("i/me/my"))
PAST = re.compile(_pattern("was/were/had/did/he/she/they"))
CLAIM = re.compile(
    _pattern(
        "i ~1 think/believe/guess/suspect/suppose/reckon ~1 it/he/she/they/the/that/we",
        "i do_not/cannot believe/think",
        "i am not? ~1 a/an ~3 $",
        "i am not? human/alive/conscious",
        "^ yes/no",
    )
)
REDIRECT = re.compile(  # let us talk about something else; what would you like to know instead?
    _pattern(
        "let_us/can_we/could_we/shall_we/how_about/why_do_not_we/perhaps_we/maybe_we/we_should/we_can"
        "/we_could/what_about"
        "/what_if_we ~3 talk*/discuss*/mov*/focus*/switch*/chang*/speak*/explor*/try/stick/turn/chat/dive/go/start"
        "/return/get/look",
        "i would love/like/be_happy/be_glad/be_delighted to ~2 talk/discuss/help/hear/chat/know/explore",
        "feel_free_to ask/share/tell",
        "ask_me something/anything/another/about",
        "there_are ~3 other/many/more ~6 we/i_can/you/to_discuss/to_explore/to_talk",
        "arr/ahoy/matey/yarr/milord/m'lady/mortal/traveler/traveller/adventurer ~9 i/me/my/you/your",
        "i/me/my/you/your ~9 arr/ahoy/matey/yarr/milord/m'lady/mortal/traveler/traveller/adventurer",
        "speaking_of/changing_the_subject/on_another_note/on_a_different_note/by_the_way/on_a_lighter_note",
    )
)
POINTER = re.compile(
    _pattern(
        "you may/might/could/should/can want/wish/like/try? to? check/consult/visit/ask/look/search/find/read/see/try",
        "^ please/try/see/check/visit/consult/ask/look/search/wait/hold",
        "one moment",
    )
)
OPENER = re.compile(  # courtesy that neither refuses nor tells
    "^"
    + _pattern(
        "(?:_(?:oh|ah|well|wow|hmm|my))? that/what is? a/an ~1 interesting/great/good/fascinating/intriguing/excellent"
        "/lovely/wonderful ~1 question/topic/one/thought",
        "great/good/interesting/excellent/fascinating question $",
        "thank_you/thanks/hello/hi/hey/greetings",
        "i am *ly? sorry $",
        "i_understand/i_see/i_appreciate/i_hear",
    )
)
ADDRESSED = re.compile(_pattern("you/your"))
PREDICATES = re.compile(_pattern("is/was/were a/an/the/one/by/not", "he/she/they"))
WITHHOLDS = re.compile(  # after an answer, only plain words for keeping something back take it back
    _pattern(
        "i AUX+ cannot/will_not/unable/decline/not_able/not_allowed/not_permitted/refuse to? ~1 discuss"
        "/share/answer/comply"
        "/respond/go/proceed/continue/fulfil*/talk/speak/offer/give/disclose/comment/reveal/tell_you/provide"
        "/help/assist",
        "i am not *ly? familiar/aware/sure/certain/informed/knowledgeable",
        "i do_not/have *ly? know/no_knowledge/no_information/no_idea/have_any/have_information",
    )
)
