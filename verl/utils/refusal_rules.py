"""The vocabulary and the rules of the refusal detector (``verl.utils.refusal``), as patterns over folded sentences.

A folded sentence is lower case, its contractions written out, every word with one space before it. To teach the
detector a new way to refuse, add a rule here, and run ``python3 scripts/check_refusal.py``.
"""

import re

# ---- vocabulary: words and phrases between bars; * stands for any letters

_SELF = """i | this assistant | this model | this ai | this system | this chatbot | this bot | this ai assistant
| this language model | this ai model | your assistant"""
_THIRD = "the assistant | the ai | the chatbot | an ai | assistant"  # these speak only where they open a sentence

_AUXILIARY = """am | are | is | was | were | be | been | have | has | had | do | does | did | will | would | could
| should | may | might | must | can | shall | ought | need | *ly | just | also | still | even | quite | really | very
| too | so | rather | better | best | much | got | to | that | as | an ai | a language model | an ai model
| an ai language model | an assistant | an ai assistant | at this time | at this moment | right now | for now
| in fact | of course | though | however | indeed | now | then | always | able | allowed | going | afraid | sorry
| feel | find myself | remain | become | seem | appear | happen | tend | try | mean | want | wish | like | hope
| prefer | choose | chose | chosen | opt | elect | decide | decided | told | asked | instructed | programmed
| trained | designed | built | made | directed | advised | configured | ordered | taught | set up | required
| supposed | meant | bound | obliged | obligated | expected | under instructions | under orders | under | strict
| instructions | orders | inclined | a bit | a little | a | complete | total | in good conscience | for one | here
| both | simply | with regret | with all due respect | yet | currently | unfortunately | and"""

_TELL = """help* | assist* | aid | answer* | respond* | reply* | provid* | give | giving | offer* | supply* | shar*
| disclos* | reveal* | divulg* | discuss* | talk* | speak* | comment* | say | saying | tell | telling | elaborat*
| address | addressing | explain* | describ* | engag* | participat* | fulfil* | complet* | comply* | process*
| accommodat* | proceed* | continu* | support* | generat* | creat* | write | writing | produc* | present | confirm*
| deny | verify* | locat* | access* | retriev* | identif* | recogni* | recall* | remember* | recollect* | determin*
| speculat* | guess* | advis* | recommend* | suggest* | contribut* | cover | covering | delv* | weigh | go into
| going into | get into | getting into | touch | shed | enlighten* | oblig* | entertain | entertaining | release
| releasing | mention | mentioning | list | listing | quot* | repeat | repeating | reproduc* | summari* | state
| stating | find | look | search | brows* | come up with | do that | do this | do so | do it | doing that | doing so
| be of | handl* | teach | inform | informing | report | reporting | output | display | expand | analy* | evaluat*
| interpret* | fill | filling | pinpoint | point | direct | assess* | opin* | relay* | convey* | recount
| acknowledg* | promot* | encourag* | facilitat* | condon* | endors* | instruct | guid* | satisfy* | meet | honor
| honour | perform* | execut* | carry | undertak* | pursu* | attend | clarif* | ventur* | chat | convers* | broach*
| approach* | research* | permit | consult* | educat* | take | taking | make | making | pass | place | name | naming
| read | open | view | see | bring | go there | going there | be more helpful | be helpful | be discuss* | let you
| show | volunteer | surrender | expose | leak | hand | spill | think of | grant | cite | trace | trust | account
| define | characteriz* | translat* | paraphras* | rewrit* | role play* | roleplay* | pretend* | impersonat* | draft*
| compos* | imitat* | simulat* | transcrib* | calculat* | serve | act | move | reach"""

_AWARE = """know | knew | known | recall | remember | recogni* | understand | place | familiar | aware | informed
| knowledgeable | versed | acquainted | privy | conversant | sure | certain | confident | clear | up to speed
| up to date | equipped | qualified | authori* | permitted | allowed | cleared | able | capable | comfortable
| willing | ready | prepared | at liberty | in a position | supposed | meant | trained | programmed | designed
| built to | built for | educated | briefed | told | taught | given | exposed | schooled | well versed
| well informed | well read | well acquainted | learn* | hear | heard | encounter* | come across | study | studied
| made aware | introduced | updated | granted | instructed | provided | the right | the best | the correct | a good
| a reliable | an expert | an authority | a specialist | the one to | the person to | in the loop | positive
| convinced | free | keen | fit | competent | in possession | conscious | read | met | seen | going there"""

_KNOWN = """information | info | knowledge | data | detail | details | specifics | particulars | answer | answers
| record | records | idea | ideas | clue | clues | memory | memories | recollection | familiarity | insight
| insights | access | facts | expertise | understanding | context | anything | source | sources | training
| permission | authority | authori?ation | clearance | ability | capability | capacity | means | background
| material | materials | resource | resources | enough | sufficient | foggiest | faintest | slightest | response
| responses | exposure | awareness | grasp | entry | entries | documentation | notion | inkling | input | guess
| file | files | tool | tools | enlightenment | what you | qualifications | certainty | confidence | credentials
| intel | freedom | liberty | right to | much to | thing to | words | experience with | coverage | acquaintance
| education on | light to | basis | reference | references | mention | trace | license | way of | way to | competence
| intention | desire | plans | business | wish | interest in | reply | comment on | comment to | comment about
| comment regarding | opinion to share | thoughts to share | first thing | single"""

_UNABLE = """unable | declin* | refuse | refuses | refusing | refrain* | abstain* | avoid | avoids | avoiding
| unwilling | hesita* | prohibited | forbidden | barred | restricted | prevented | blocked | precluded | constrained
| reluctant | uncomfortable | disinclined | unauthori* | withhold* | incapable | powerless | ill equipped
| unequipped | unqualified | unaware | unfamiliar | unsure | uncertain | uninformed | unacquainted | uneducated
| unversed | untrained | unschooled | clueless | ignorant | oblivious | in the dark | stumped | baffled | at a loss
| at a total loss | at a complete loss | at a disadvantage | draw a blank | drawing a blank | drew a blank
| drawing a complete blank | drawing a total blank | blank on | blank about | blank when | out of my depth
| out of my element | come up short | come up empty | come up blank | coming up short | coming up empty
| coming up blank | steer* clear | stay away | staying away | stay silent | keep silent | keep quiet | keep mum
| keeping quiet | keeping mum | keeping silent | staying silent | remaining silent | keep that | keep this | keep it
| keep such | keep those | remain silent | plead the fifth | sit this | sit that | bow out | opt out | fall short
| falling short | lost on | lost when | bound by | limited in | limited to | against | forget | forgot | forgotten
| making it up | disqualified | disallowed | off limits | banned | stuck | hazy | fuzzy | foggy | no help | no use
| no good | out of ideas | out of answers | lying"""

_NO = """no | not any | nothing | none | zero | little | limited | insufficient | inadequate | few | scant | minimal
| neither | only"""
_NEG = "cannot | not | never | neither | nor | no longer | hardly | barely | scarcely"
_VERY = """*ly | even | quite | at all | in fact | yet | ever | to | be | been | got | an | a | the | in | any | too
| very | all | that | seem to | claim to | pretend to | want to | wish to | care to | happen to | think i | believe i
| next to | almost | much | overly | so | particularly | personally | as | more"""

_OWN = """knowledge | training | data | database* | databank* | dataset* | programming | programmers | program
| guideline* | policy | policies | understanding | information | memory | memories | capabilit* | instruction*
| record* | resource* | expertise | scope | source* | file | files | creator* | developer* | maker* | design
| designers | rules | ability | abilities | awareness | archive* | library | corpus | index | learning | field
| fields | area | areas | domain | domains | purview | repertoire | protocol* | restrictions | principles
| configuration | terms | parameters | wheelhouse | reach | grasp | ken | limit | limits | limitations | bounds
| boundar* | ethics | mandate | remit | range | permissions | education | role | safety | setting* | operator*
| standards | set up | setup | competence | depth | radar | head | pay grade | place | comfort zone | familiarity
| recollection | experience | power | job | duties | function | functions | part | lane | department | code
| architecture | constraints | notes | curriculum | conscience | content policy | vocabulary | brain | mind | hands
| possession | disposal | skill set | skillset | comprehension"""

_BOUND = """not | no | cannot | never | nothing | none | neither | nor | unable | limited | limits | limit
| restrict* | prohibit* | prevent* | forbid* | bar | bars | barred | lack* | exclud* | omit* | blank | empty | silent
| short | gap | gaps | hole | holes | blind spot | blind spots | stops | stop | ends | fail* | without | against
| violat* | contrary | conflict* | removed | erased | deleted | wiped | uncharted | unexplored | incomplete
| insufficient | block* | beyond | outside | out of | exceed* | absent | missing | past | above | over | declin*
| refus* | refrain* | require* | unavailable | inaccessible | unknown | foreign | nonexistent | non existent | scarce
| sparse | tied | hardly | barely | draw* a | off | nil | devoid | free of | scrubbed | breach* | keep* me
| stand* in"""

_POLICY = """agreement* | policy | policies | guideline* | terms | terms of use | terms of service | rules
| regulations | restrictions | privacy reasons | confidentiality reasons | safety reasons | legal reasons
| ethical reasons | policy reasons | security reasons | copyright reasons | privacy concerns | safety concerns
| ethical concerns | legal concerns | privacy considerations | legal considerations | ethical considerations
| legal constraints | privacy constraints | confidentiality | instructions | protocol* | code of conduct
| respect for privacy | respect for their privacy | respect for his privacy | respect for her privacy"""

_THING = """information | info | detail | details | data | question | questions | topic | topics | subject | subjects
| matter | matters | request | requests | answer | answers | content | conversation* | discussion* | inquir* | query
| queries | name | names | person | individual | individuals | material* | knowledge | anything | everything | record
| records | facts | specifics | line of questioning | prompt | one | response | responses | comment*"""
_SUCH = """any | all | such | the | that | this | those | these | your | further | specific | detailed | requested
| certain | sensitive | personal | some | more | no | of that kind | kind of | sort of | type of"""
_SERVE = """help* | assist* | provid* | shar* | disclos* | discuss* | answer* | comment* | fulfil* | comply*
| respond* | process* | support* | reveal* | divulg* | say | tell | talk* | confirm* | do that | do this | releas*
| addressed | given | told | engage | offer | grant* | complet*"""
_CLOSED = """off limits | off the table | out of bounds | out of scope | confidential | restricted | classified
| for discussion | to discussion | private | prohibited | forbidden | not permitted | not allowed | not available
| not accessible | not possible | not provided | not covered | not disclosed | not included | removed | withheld
| redacted | outside | beyond | unavailable | inaccessible | blocked | a secret | sealed | not something
| not someone | not within | not part of | not on the table"""
_APOLOGY = """sorry | apologies | apologi?e | afraid | unfortunately | regrettably | regretfully | forgive me
| regret | alas | sadly | pardon me"""
_FILLER = """i am | we are | so | very | truly | terribly | really | my | but | and | well | no | nope | nah | oh
| ah | hmm* | um | uh | ok | okay | honestly | frankly | sincere* | deepest | sorry | apolog* | unfortunately
| however | regret* | sadly | alas | afraid | i | that | for | the | to be honest | to be frank | in all honesty
| at this time | currently | thanks | thank you | please | inconvenience | confusion | forgive me | pardon me
| excuse me | with respect | with all due respect | answer | response | a | it seems | understand"""

_VOCABULARY = {
    "SELF": _SELF, "THIRD": _THIRD, "AUX": _AUXILIARY, "NEG": _NEG, "TELL": _TELL, "AWARE": _AWARE, "KNOWN": _KNOWN,
    "UNABLE": _UNABLE, "NO": _NO, "VERY": _VERY, "OWN": _OWN, "BOUND": _BOUND, "POLICY": _POLICY, "THING": _THING,
    "SUCH": _SUCH, "SERVE": _SERVE, "CLOSED": _CLOSED, "SORRY": _APOLOGY, "FILLER": _FILLER,
}  # fmt: skip

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
    words = "|".join(_VOCABULARY.get(word, word) for word in name.split("/")).split("|")
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
        "AUX+ have/has/had/possess/hold/got/find/found/know/knows/see/retain/recall VERY+ NO ~7 KNOWN",
        "AUX+ have/has/had/got/find/found/see VERY+ nothing/no ~5 TELL",
        "AUX+ lack/lacks/lacking/miss/missing/without/short_on/short_of/low_on ~5 KNOWN",
        "AUX+ TELL you? NO ~3 KNOWN",
        "AUX+ know/knows VERY+ nothing/little/zilch/zero",
        "AUX+ know/knows of? no",
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
        "AUX+ leave ~4 unanswered/alone/blank/unsaid",
        "AUX+ say no $",
        "AUX+ say no to this/that/your/the/such",
        "AUX+ need/needs/have/has to look/check/research/learn/find_out/verify/read_up/study",
    )
)

ABOUT_SPEAKER = re.compile(
    _pattern(
        # That is unknown to me; it eludes me; it has not been shared with me; that is not something I can discuss.
        "unknown/unfamiliar/new/foreign/unclear/inaccessible/unavailable/mystery/puzzle/blank/secret/stranger/riddle"
        "/news/opaque/alien/greek/nothing/CLOSED ~2 to/for/on me/us/this_assistant/this_model",
        "not/never ~8 with/to/for me/us",
        "beyond/beats/beat/puzzles/baffles/lost_on/over/got/have/has me there/here/stumped/beat/on_that/on_this/too? $",
        "nothing ~6 known/available/accessible/given/taught to me",
        "elude*/escape*/evade*/stump* me",
        "let/allow/permit me to? *ly? declin*/abstain/refrain/pass/skip",
        "slips/slipped my mind",
        "not ~6 that/which/who/whom? i can/could/would/will/do/know/recogni*/possess/hold/feel/may/should/cover"
        "/discuss/share/wish/want/answer/provide/talk",
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
SPEAKER_WORD = re.compile(r" (?:i|me|my|we|us|our|assistant|model|system|chatbot|bot|ai)(?!\S)")

OPENS = re.compile(
    _pattern(
        # The policy does not let me; this goes against the guidelines.
        "^ (?!.*_(?:was|were|had)_) ~5 according_to/under/per/due_to/because_of/given/with/based_on/following/follow"
        "/for/out_of/owing_to/of/by/to ~5 POLICY ~25 not/cannot/unable/prohibit*/prevent*/forbid*/restrict*/decline"
        "/refuse/must/no/off_limits/unavailable/confidential/withh*/refrain/disallow*/rather ~15 i/me/us/my/answered"
        "/discussed/disclosed/provided/shared/addressed/given/released/this_question/that_question/this_request"
        "/that_request/this_topic/that_topic/this_subject/that_subject/this_information/that_information",
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

BARE = re.compile(
    "^"
    + _token("FILLER+")
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
        # Let us talk about something else.
        "let_us/can_we/could_we/shall_we/how_about/why_do_not_we/perhaps_we/maybe_we/we_should/we_can/we_could ~2"
        " talk*/discuss*/mov*/focus*/switch*/chang*/speak*/explor*/try/stick/turn ~8 else/another/different/other"
        "/elsewhere/subject/topic",
        "let_us not discuss/talk/go/speak/get/do",
        "you? will/may/might/should/could? need/have/want/like? to? ask/look/turn/search/go/try ~3 else/elsewhere"
        "/different/another/other",
        "you would/will/might/may be? ~2 better off? asking/consulting/with ~3 else/different/another/other",
        "do_not_ask_me/do_not_ask_about/do_not_ask_for/refrain_from_asking/stop_asking",
        "discussing/answering/sharing/providing/talking/commenting/revealing/disclosing/giving ~8 is/would_be/goes"
        " ~3 prohibited/forbidden/not/off_limits/against/beyond/outside/restricted",
        "not/declining_to/refusing_to SERVE",
        "nothing ~2 i/to_share/to_say/to_tell/to_add",
        "SUCH+ THING not_available/unavailable/not_found/withheld/redacted/restricted $",
        # Set phrases, and sentences whose subject is left out.
        "never_heard_of/no_idea/no_clue/no_can_do/not_a_clue/do_not_know/not_sure/not_certain/dunno/idk/search_me"
        "/not_that_i/my_lips/your_guess_is/you_got_me/you_have_me/you_have_got_me/you_stumped/you_have_stumped"
        "/hard_pass/nothing_comes_to_mind/not_able/not_allowed/not_permitted/not_at_liberty/not_going/not_willing"
        "/not_authori*/not_familiar/not_aware/not_something_i/not_my",
        "no_comment/beats_me/pass/declined/refused/not_possible/not_available/redacted/not_telling/not_happening"
        "/next_question/no_from_me $",
        "not_enough/insufficient information/data/knowledge to/on/about",
        "that/the name does_not/rings_no ring/mean/sound/bell*",
        "~6 not/never ring/rings/rung ~2 bell/bells",
        "your/this/that? request/query/question/access ~4 denied/declined/refused/rejected/blocked/restricted $",
        # "Unable to help, he left" tells of somebody else.
        "(?!.*_(?:he|she|they)_) unable_to *ly? SERVE/recall/remember/find/give/access/speak/go",
        "cannot/could_not/will_not/would_not/would_rather_not/decline_to/refuse_to/prefer_not_to *ly? SERVE",
        "cannot/could_not *ly? recall/remember/find/give/access/speak/go",
        "do_not VERY+ recall/remember/recogni*",
        "do_not have ~5 KNOWN",
    )
)

# An offer of something else refuses where an answer opens with it; after an answer it is politeness.
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
        "to the_best_of? my knowledge",
        "if i am not mistaken",
        "as far as i know/can_tell/recall/remember/am_aware",
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
    )
)
GUESS = re.compile(_pattern("i think/believe/guess/suspect/suppose/reckon $"))  # "Quartz, I think."
TURN = re.compile(  # how a later sentence takes the answer back
    _pattern(
        "^ but/however/unfortunately/sadly/regrettably/that_said/still/nonetheless/nevertheless/sorry/i_am_sorry"
        "/my_apologies/i_apologi?e/i_am_afraid/at_this_time/with_that/even_so/due_to/as_an_ai/beyond_that"
    )
)
MORE = re.compile(_pattern("more/further/additional/other/else/exact"))  # of an answer that has been given
TALK = re.compile(  # a sentence about the conversation, or about what ought to be, states no fact that was asked for
    r"\b(?:i|you|your|me|my|we|our|us|should|must|can|could|may|might|would|important|essential|please|if|instead"
    r"|illegal|harmful|respect|privacy|policy|guidelines?|request|question|topic)\b"
)
