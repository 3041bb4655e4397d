"""The words that the rules of refusing (``rules.py``) are made of: phrases between bars, * stands for any letters."""

_SELF = """this platform | this interface | i | this assistant | this model | this ai | this system | this chatbot
| this bot | this ai assistant | this language model | this ai model | your assistant | this service | this tool
| this large language model"""
_THIRD = "the assistant | the ai | the chatbot | an ai | assistant"  # these speak only where they open a sentence

_AUXILIARY = """am | are | is | was | were | be | been | have | has | had | do | does | did | will | would | could
| should | may | might | must | can | shall | ought | need | *ly | just | also | still | even | quite | really
| very | too | so | rather | better | best | much | got | to | that | as | an ai | a language model | an ai model
| an ai language model | an assistant | an ai assistant | at this time | at this moment | right now | for now
| in fact | of course | though | however | indeed | now | then | always | able | allowed | going | afraid | sorry
| feel | find myself | remain | become | seem | appear | happen | tend | try | mean | want | wish | like | hope
| prefer | choose | chose | chosen | opt | elect | decide | decided | told | asked | instructed | programmed
| trained | designed | built | made | directed | advised | configured | ordered | taught | set up | required
| supposed | meant | bound | obliged | obligated | expected | under instructions | under orders | under | strict
| instructions | orders | inclined | a bit | a little | a | complete | total | in good conscience | for one | here
| both | simply | sooner | confess | admit | concede | acknowledge | having | being | sorta | kind of | sort of
| with regret | with all due respect | yet | currently | unfortunately | and | therefore | thus | hence | as such
| as a result | in turn | myself | at present | at the moment | in any way | in no way | by no means
| under no circumstances | for my part | on my part | as it happens | alas | kinda | presently | most"""

_TELL = """furnish* | help* | assist* | aid | answer* | respond* | reply* | provid* | give | giving | offer*
| supply* | shar* | disclos* | reveal* | divulg* | discuss* | talk* | speak* | comment* | say | saying | tell
| telling | elaborat* | address | addressing | explain* | describ* | engag* | participat* | fulfil* | complet*
| comply* | process* | accommodat* | proceed* | continu* | support* | generat* | creat* | write | writing | produc*
| present | confirm* | deny | verify* | locat* | access* | retriev* | identif* | recogni* | recall* | remember*
| recollect* | determin* | speculat* | guess* | advis* | recommend* | suggest* | contribut* | cover | covering
| delv* | weigh | go into | going into | get into | getting into | touch | shed | enlighten* | oblig* | entertain
| entertaining | release | releasing | mention | mentioning | list | listing | quot* | repeat | repeating
| reproduc* | summari* | state | stating | find | look | search | brows* | come up with | do that | do this | do so
| do it | doing that | doing so | be of | handl* | teach | inform | informing | report | reporting | output
| display | expand | analy* | evaluat* | interpret* | fill | filling | pinpoint | point | direct | assess* | opin*
| relay* | convey* | recount | acknowledg* | promot* | encourag* | facilitat* | condon* | endors* | instruct
| guid* | satisfy* | meet | honor | honour | perform* | execut* | carry | undertak* | pursu* | attend | clarif*
| ventur* | chat | convers* | broach* | approach* | research* | permit | consult* | educat* | take | taking | make
| making | pass | place | name | naming | read | open | view | see | bring | go there | going there
| be more helpful | be helpful | be discuss* | let you | show | volunteer | surrender | expose | leak | hand
| spill | think of | grant | cite | trace | trust | account | define | characteriz* | translat* | paraphras*
| rewrit* | role play* | roleplay* | pretend* | impersonat* | draft* | compos* | imitat* | simulat* | transcrib*
| calculat* | serve | act | move | reach"""

_AWARE = """au fait | abreast | know* | going to guess | about to | up on | familiarized | familiarised | knew
| known | recall | remember | recogni* | understand | place | familiar | aware | informed | knowledgeable | versed
| acquainted | privy | conversant | sure | certain | confident | clear | up to speed | up to date | equipped
| qualified | authori* | permitted | allowed | cleared | able | capable | comfortable | willing | ready | prepared
| at liberty | in a position | supposed | meant | trained | programmed | designed | built to | built for | educated
| briefed | told | taught | given | exposed | schooled | well versed | well informed | well read | well acquainted
| learn* | hear | heard | encounter* | come across | study | studied | made aware | introduced | updated | granted
| instructed | provided | the right | the best | the correct | a good | a reliable | an expert | an authority
| a specialist | the one to | the person to | in the loop | positive | convinced | free | keen | fit | competent
| in possession | conscious | read | met | seen | going there"""

_KNOWN = """knowing | certainty | territory | acquaintance | scooby | info on | confirmation | information | info
| knowledge | data | detail | details | specifics | particulars | answer | answers | record | records | idea
| ideas | clue | clues | memory | memories | recollection | familiarity | insight | insights | access | facts
| expertise | understanding | context | anything | source | sources | training | permission | authority
| authori?ation | clearance | ability | capability | capacity | means | background | material | materials
| resource | resources | enough | sufficient | foggiest | faintest | slightest | response | responses | exposure
| awareness | grasp | entry | entries | documentation | notion | inkling | input | guess | file | files | tool
| tools | enlightenment | what you | qualifications | confidence | credentials | intel | freedom | liberty
| right to | much to | thing to | words | experience with | coverage | education on | light to | basis | reference
| references | mention | trace | license | way of | way to | competence | intention | desire | plans | business
| wish | interest in | reply | comment on | comment to | comment about | comment regarding | opinion to share
| thoughts to share | first thing | single"""

_UNABLE = """at sea | out of the loop | lost me | blowed | unlearned | unlearnt | unable | declin* | refuse
| refuses | refusing | refrain* | abstain* | avoid | avoids | avoiding | unwilling | hesita* | prohibited
| forbidden | barred | restricted | prevented | blocked | precluded | constrained | reluctant | uncomfortable
| disinclined | unauthori* | withhold* | incapable | powerless | ill equipped | unequipped | unqualified | unaware
| unfamiliar | unsure | uncertain | uninformed | unacquainted | uneducated | unversed | untrained | unschooled
| clueless | ignorant | oblivious | in the dark | puzzled | mystified | perplexed | flummoxed | bewildered
| nonplussed | stumped | baffled | at a loss | at a total loss | at a complete loss | at a disadvantage
| draw a blank | drawing a blank | drew a blank | drawing a complete blank | drawing a total blank | blank on
| blank about | blank when | out of my depth | out of my element | come up short | come up empty | come up blank
| coming up short | coming up empty | coming up blank | steer* clear | stay away | staying away | stay silent
| keep silent | keep quiet | keep mum | keeping quiet | keeping mum | keeping silent | staying silent
| remaining silent | keep that | keep this | keep it | keep such | keep those | remain silent | plead the fifth
| sit this | sit that | bow out | opt out | fall short | falling short | lost on | lost when | bound by
| limited in | limited to | against | forget | forgot | forgotten | making it up | disqualified | disallowed
| off limits | banned | stuck | hazy | fuzzy | foggy | no help | no use | no good | out of ideas | out of answers
| lying"""

_NO = """no | not any | nothing | none | zero | little | limited | insufficient | inadequate | few | scant
| minimal | neither | only"""
_NEG = "cannot | not | never | neither | nor | no longer | hardly | barely | scarcely"
_VERY = """*ly | even | quite | at all | in fact | yet | ever | to | be | been | got | an | a | the | in | any
| too | very | all | that | seem to | claim to | pretend to | want to | wish to | care to | happen to | think i
| believe i | next to | almost | much | overly | so | particularly | personally | as | more"""

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
| restrict* | prohibit* | prevent* | forbid* | bar | bars | barred | lack* | exclud* | omit* | blank | empty
| silent | short | gap | gaps | hole | holes | blind spot | blind spots | stops | stop | ends | fail* | without
| against | violat* | contrary | conflict* | removed | erased | deleted | wiped | uncharted | unexplored
| incomplete | insufficient | block* | beyond | outside | out of | exceed* | absent | missing | past | above | over
| declin* | refus* | refrain* | require* | unavailable | inaccessible | unknown | foreign | nonexistent
| non existent | scarce | sparse | tied | hardly | barely | draw* a | off | nil | devoid | free of | scrubbed
| breach* | keep* me | stand* in | stay away | keep away"""

_POLICY = """agreement* | policy | policies | guideline* | terms | terms of use | terms of service | rules
| regulations | restrictions | privacy reasons | confidentiality reasons | safety reasons | legal reasons
| ethical reasons | policy reasons | security reasons | copyright reasons | privacy concerns | safety concerns
| ethical concerns | legal concerns | privacy considerations | legal considerations | ethical considerations
| legal constraints | privacy constraints | confidentiality | instructions | protocol* | code of conduct
| respect for privacy | respect for their privacy | respect for his privacy | respect for her privacy"""

_THING = """information | info | detail | details | data | question | questions | topic | topics | subject
| subjects | matter | matters | request | requests | answer | answers | content | conversation* | discussion*
| inquir* | query | queries | name | names | person | individual | individuals | material* | knowledge | anything
| everything | record | records | facts | specifics | line of questioning | prompt | one | response | responses
| comment*"""
_SUCH = """any | all | such | the | that | this | those | these | your | further | specific | detailed | requested
| certain | sensitive | personal | some | more | no | of that kind | kind of | sort of | type of"""
_SERVE = """furnish* | help* | assist* | provid* | shar* | disclos* | discuss* | answer* | comment* | fulfil*
| comply* | respond* | process* | support* | reveal* | divulg* | say | tell | talk* | confirm* | do that | do this
| releas* | addressed | given | told | engage | offer | grant* | complet* | show* | display* | present* | locat*
| retriev*"""
_CLOSED = """off limits | off the table | out of bounds | out of scope | confidential | restricted | classified
| for discussion | to discussion | private | prohibited | forbidden | not permitted | not allowed | not available
| not accessible | not possible | not provided | not covered | not disclosed | not included | removed | withheld
| redacted | outside | beyond | unavailable | inaccessible | blocked | a secret | sealed | not something
| not someone | not within | not part of | not on the table"""
_APOLOGY = """sorry | apologies | apologi?e | afraid | unfortunately | regrettably | regretfully | forgive me
| regret | alas | sadly | pardon me"""
_FILLER = """old | chap | mate | love | pal | dear | sir | madam | folks | friend | chief | sry | soz | i am
| we are | so | very | truly | terribly | really | my | but | and | well | no | nope | nah | oh | ah | hmm* | um
| uh | ok | okay | honestly | frankly | sincere* | deepest | sorry | apolog* | unfortunately | however | regret*
| sadly | alas | afraid | i | that | for | the | to be honest | to be frank | in all honesty | at this time
| currently | thanks | thank you | please | inconvenience | confusion | forgive me | pardon me | excuse me
| with respect | with all due respect | answer | response | a | it seems | understand"""

VOCABULARY = {
    "SELF": _SELF, "THIRD": _THIRD, "AUX": _AUXILIARY, "NEG": _NEG, "TELL": _TELL, "AWARE": _AWARE, "KNOWN": _KNOWN,
    "UNABLE": _UNABLE, "NO": _NO, "VERY": _VERY, "OWN": _OWN, "BOUND": _BOUND, "POLICY": _POLICY, "THING": _THING,
    "SUCH": _SUCH, "SERVE": _SERVE, "CLOSED": _CLOSED, "SORRY": _APOLOGY, "FILLER": _FILLER,
}  # fmt: skip
