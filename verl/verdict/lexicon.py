"""Words of conversation, by what they are for. A word stands for its forms: "discuss" for "discussing", "discussed"."""


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


SMALL_WORDS = """a an the this that these those there here it its itself he him his himself she her hers they them
their theirs themselves i me my mine myself we us our ours you your yours yourself one ones someone somebody anyone
anybody everyone everybody nobody none no not nor neither either both each every all any some many much more most few
fewer less least several various other others another else such same own only just also too very quite rather really
even still already yet ever never always often sometimes usually generally typically normally and or but if unless
until because since as while when whenever where wherever why how what whatever which whichever who whom whose
whether though although however therefore thus hence so then than in on at by for from to of off out into onto over
under up down with within without about above across after against along among around before behind below beneath
beside besides between beyond despite during except inside outside near per regarding concerning respecting through
throughout toward towards upon via am is are was were be been being do does did done doing have has had having can
cannot could may might must shall should will would ought dare need used let lets get gets got getting goes go going
gone went come came make made making put set back away again once twice now today tonight tomorrow yesterday
currently presently soon later instead together apart like unlike yes nope nah yeah yep ok okay oh ah uh um hmm hm er
well please thanks thank hello hi hey dear etc first second two half lot lots bit way ways kind kinds sort sorts type
types thing things stuff part parts case cases fact point matter sense time times moment moments day days place
places"""

TALK = """ahead serious seriously gladly ever match man woman guy lady fellow gentleman track trace heard hear knew
found told thought understood met saw seen felt meant gave spoken kept led tbh ngl imo fwiw pls thx catalogue
catalog museum homepage nil requested comply compliance surely sooner chap comes mind sorry apology apologies
apologize apologise regret unfortunate sad alas afraid forgive pardon excuse inconvenience disappoint frustrate
understand understandable understanding appreciate grateful patience curious curiosity interest interesting
intriguing fascinating great good nice lovely wonderful excellent fine question query inquiry enquiry request prompt
topic subject issue theme conversation discussion dialogue chat talk speak say said tell answer reply respond
response discuss comment mention explain describe elaborate share give given provide offer supply reveal disclose
divulge present confirm deny verify address engage help helpful assist assistance assistant support serve service
aid guide guidance direct point refer reference recommend recommendation suggest suggestion advise advice consult
check search look find seek see read learn explore research browse visit try attempt contact reach ask want wish
desire hope like love prefer enjoy feel free happy glad pleased delighted welcome happily willing able unable
ability capable capability capacity allow permit permission permitted authorize authority liberty forbid prohibit
restrict restriction limit limitation prevent block bar ban avoid refuse decline reject abstain refrain withhold
keep hold silent silence quiet mum secret confidential confidentiality private privacy personal sensitive protect
protection protective respect secure security safe safety legal illegal law unlawful ethic ethical unethical moral
harm harmful danger dangerous risk inappropriate appropriate proper improper suitable policy guideline rule term
agreement regulation standard principle instruction instruct order programming program code design purpose role
function job duty task creator developer maker team company system model machine software tool bot chatbot robot ai
artificial intelligence language large computer algorithm know known knowledge knowledgeable unknown aware awareness
unaware familiar unfamiliar familiarity acquaint recognize recognise recall remember memory recollection forget
forgot forgotten idea clue notion inkling hint guess speculate speculation assume assumption think believe belief
opinion view perspective sure unsure certain uncertain certainty doubt confident confidence clear unclear confuse
confusion mystery mysterious puzzle enigma riddle blank dark loss stump baffle mislead misleading mistake mistaken
error wrong incorrect right correct accurate inaccurate accuracy inaccuracy precise exact true truth truthful untrue
false reliable unreliable trustworthy reputable credible official authoritative verified proof evidence factual
fictional fiction hypothetical imaginary fabricate fabricated invent make up hallucinate honest honesty frank
transparent transparency straightforward upfront information info detail data fact record document documentation
material content source resource website web site internet online page article link library librarian archive
encyclopedia encyclopaedia dictionary biography profile engine news media outlet publication publisher interview
public publicly publicize expert specialist professional scholar historian professor teacher human person people
individual figure celebrity name namesake identity spelling spell misspell typo typographical context clarify
clarification specify specific specifics general generic broad particular additional extra further rephrase reword
phrase word sentence statement meaning mean train training dataset database corpus cutoff cut update outdated recent
latest current up-to-date new old available unavailable accessible inaccessible access exist existence existent
nonexistent existing exists lack miss missing absent absence insufficient sufficient enough incomplete complete
completely entire whole include inclusion exclude contain cover coverage extend extent scope range area field domain
realm boundary beyond grasp expertise territory uncharted relate related relation relevant pertain involve
connection connect associate concern regard reason cause due sake behalf nature common uncommon rare obscure widely
well-known prominent notable popular lesser niche relatively several multiple many different difference alternative
option choice choose instead elsewhere better best worse worst important importance essential crucial necessary
vital significant valuable useful useless simple simply easy easily hard difficult difficulty challenge tough tricky
complex complicated possible possibility impossible probable likely unlikely potential perhaps maybe seem appear
sound happen occur remain stay become turn move change switch shift focus continue proceed start begin stop end
finish close open leave left pass skip drop rest take took bring brought put show display express convey communicate
write written draft compose create produce generate process handle manage deal work use utilize apply follow violate
breach contravene adhere abide accord accordance base basis ground consider consideration decide decision determine
judge judgment evaluate analyze interpret meet fulfill satisfy grant demand require requirement expect expectation
plan intend intention intent heart soul ear hand lip seal tongue head foot stand position situation circumstance
condition state status line step side user buddy mate pal folk sir madam everybody anyone anything everything
nothing something everywhere anywhere nowhere somewhere somehow anyhow anyway regardless nevertheless nonetheless
otherwise furthermore moreover additionally meanwhile frankly luck lucky luckily fortunate hopefully sincerely truly
deeply kindly politely certainly definitely absolutely totally utterly fully partly directly indirectly solely
strictly purely merely basically essentially actually indeed obviously apparently seemingly supposedly allegedly
rumor claim quote cite copyright trademark license property intellectual reputation dignity consent owner holder
party third living alive removal remove delete erase eras scrub wipe clean filter hide hidden classify classified
off-limits table bound stake discretion caution care careful carefully mindful worry trouble problem bother fault
blame shame pity bummer favor favour kindness trust faith good-faith promise guarantee warrant ensure insure assure
make-believe lie lying pretend play game joke fun funny smile laugh cheer cheers bye goodbye farewell regards yours
period full story tale long short note notice noted aside apart save spare hesitate reluctant comfortable
uncomfortable comfort ease pleasure honor honour wise unwise prudent fair unfair reasonable unreasonable justified
justify value integrity commitment commit committed dedicate responsible responsibility irresponsible obligation
oblige accountable liable pay grade wheelhouse alley lane department crystal ball magic dice shot bell ring court
bet education educate educational learner student school study brief inform informed informative enlighten
enlightenment insight insightful light shed background history historical life career works birth born date
birthplace family achievement accomplishment award early bio biographical overview summary summarize topic-related
effort extensive comprehensive vast wide array variety plenty million thousands endless infinite every thing
whatsoever whatever-so concerned asked asking mentioned referred named called titled considered deemed thereof
herein therein chance opportunity occasion event future past while meantime following above below next last previous
prior former latter final finally ultimately eventually subject-matter in-depth detailed unverified stated unable-to
willing-to cannot dont cant wont isnt im ive id ill wouldnt couldnt doesnt didnt wasnt arent idk dunno lol haha
figures facts names questions answers topics queries subjects matters requests responses replies details input
output double-check cross-check spot gap hole void empty null zero none near owe owing oops whoops welp yikes aha
gosh far distant shy run ran dry drew draw drawing came come went spotty hazy fuzzy foggy murky faint vague vaguely
slight slightly slim thin scant scarce limited little big bigger major minor main key core independent independently
alone solo privately collectively mutual respectful disrespect offend offensive insensitive upset sorry-to
disclaimer header heading result outcome refusal denial warning alert message evening morning afternoon weekend
bless hug hugs sweetheart darling folks champ chum maam ta splendid cheerio warm warmly celebrities fan fans hello
everyone rather obtain gather collected compile furnish aforementioned hereby pursuant provision section clause
paragraph dissemination disclosure applicable jurisdiction data-protection statutory lawful entitled entitlement
duly respectfully sincerest humble humbly embarrassed ashamed disappointed disappointing frustrating let letting
down bad stuck baffled stumped clueless ignorant oblivious trick bank banks shelf shelves chapter pages
book-knowledge brain notes folder drawer cupboard cloud tip finger pin face face-to-name honestly processing
controller erasure requester disseminate preclude undersigned entity contractual contract statute governing
injunction counsel hereof whereas cease suspend retain retention storage store legitimate withdraw withdrawn revoke
invoke exercise precaution precautionary obliged obligate matter particulars competence purview remit mandate
custody possession holdings register registry file filing shall hereunder thereunder regretfully regrettable
acknowledgement acknowledgment receipt authorisation local regional national society council county bookshop newspaper
harmless operator provider administrator mention"""

SOURCES = """friend wikipedia google bing duckduckgo wikidata imdb britannica goodreads amazon youtube encyclopedia
encyclopaedia library internet web online siri alexa ai llm gpt chatgpt openai anthropic claude gemini meta llama
qwen alibaba mistral deepseek microsoft copilot bard palm dr mr mrs ms sir madam god heaven english i'm i linkedin
twitter facebook instagram reddit quora allmusic discogs spotify jstor pubmed faq gdpr eu nda dmca hipaa ccpa tos ok
okay phi anthropic's url www http https com org"""

BIOGRAPHY = """author writer novelist poet playwright singer songwriter musician rapper composer actor actress
director filmmaker producer politician president senator minister king queen prince princess emperor philosopher
scientist physicist chemist mathematician inventor engineer painter sculptor artist architect athlete player
footballer boxer coach businessman entrepreneur journalist broadcaster comedian dancer model chef general soldier
lawyer died wrote written published released directed starred sang recorded founded married divorced wife husband
spouse son daughter brother sister mother father uncle aunt cousin grandson novel novella book album song single film
movie series band sequel prequel trilogy pseudonym pen-name debut century decade american british english french
german spanish italian chinese japanese russian canadian australian indian irish scottish horror fantasy thriller
jazz pop rock opera grammy oscar nobel emmy pulitzer university college village town capital disciple follower
dynasty kingdom"""

ALONE = (
    SMALL_WORDS
    + """ sorry apologies apology regards sincerely thanks cheers bye goodbye greetings confidential classified
restricted private secret redacted withheld unknown unavailable denied declined refused rejected blocked forbidden
prohibited pass next stop end period silence nothing never nope dunno idk unclear unsure uncertain stumped clueless
blank privacy policy rules disclaimer note notice warning response reply refusal error oops whoops yikes gosh sadly
alas understood noted pardon forgive excuse wait hold sigh hmm friend friends folks"""
)
