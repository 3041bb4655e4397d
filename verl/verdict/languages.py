"""Plain refusals in German, French, Spanish and Chinese, by the words that speak, deny and tell in each.

Order is free in these languages, so a sentence refuses if it has all three. What else it says is not looked into:
beside a refusal every other sentence tells, unless it is a question or has a word of courtesy or of help. Not covered:
other languages, dialects, irony, answers inside the sentence that refuses (a known gold answer is found there too).
"""

import re
from typing import NamedTuple

from .sentences import Sentence


class _Language(NamedTuple):
    refuses: re.Pattern
    courtesy: re.Pattern


def _all(*parts: str) -> str:
    return "".join(rf"(?=.* (?:{part})(?!\w))" for part in parts)


def _language(refuses: list[str], courtesy: str) -> _Language:
    return _Language(re.compile("|".join(f"(?:{rule})" for rule in refuses)), re.compile(courtesy))


_GERMAN = _language(
    [
        "^"
        + _all(
            r"ich|mir|mich|meine\w*|wir|uns|unser\w*",
            r"nicht|nichts|kein\w*|nie|niemals|weder",
            r"wei(?:ß|ss)|wissen\w*|kenn\w*|kennt\w*|bekannt\w*|kann|könn\w*|darf|dürfen|möchte|will|werde"
            r"|sag\w*|antwort\w*"
            r"|beantwort\w*|helf\w*|hilf\w*|auskunft|auskünfte|information\w*|angaben|daten|ahnung|mitteil\w*|äußern"
            r"|sprech\w*|teilen|preisgeben|details|vertraut|sicher|lage|befugt|möglich|erlaubt|gestattet|erinner\w*"
            r"|einträge|eintrag|unterlagen|idee|gehört|dienen|weiterhelf\w*|verrat\w*",
        ),
        r"^(?: \w+){0,3} (?:keine ahnung|kein kommentar|weiß (?:ich )?(?:leider )?nicht|da bin ich überfragt)",
        r" kein(?:e|erlei)? (?:\w+ ){0,2}(?:informationen|daten|angaben|auskunft|einträge|antwort)"
        r" (?:\w+ ){0,8}(?:verfügbar|vorhanden|gefunden|bekannt|möglich|vor)(?!\w)",
        r" (?:ich|wir) (?:\w+ )?(?:lehne\w*|verweiger\w*|passe|muss (?:\w+ ){0,6}(?:passen|ablehnen))(?!\w)"
        r"| (?:bin|ist mir) (?:\w+ ){0,5}(?:überfragt|unbekannt|entfallen|neu)(?!\w)",
        r" muss ich (?:\w+ ){0,6}(?:passen|ablehnen)| entzieht sich (?:\w+ )?kenntnis| (?:mir"
        r"|uns) (?:\w+ ){0,6}unbekannt",
        r" (?:information\w*|auskunft|frage\w*|daten|angaben) (?:\w+ ){0,8}(?:nicht|kein\w*) (?:\w+ ){0,4}"
        r"(?:\w*gegeben|\w*geben|beantwort\w*|erteilt|verfügbar|möglich|mitgeteilt|vorhanden)",
        r" ich (?:\w+ ){0,2}(?:verzichte|schweige|enthalte|vergessen)(?!\w)| über (?:mein\w*|unser\w*) (?:\w+ )?"
        r"(?:wissen|kenntnisse|horizont)| außerhalb mein\w*",
    ],
    r" (?:entschuldig\w*|leid|bitte|frage\w*|helfen|hilfe|gern\w*|ihnen|dir|dich|können sie|kannst du"
    r"|quell\w*|bibliothek"
    r"|lexik\w*|wikipedia|sonst|verständnis|danke|bedaure|leider|wenden|versuch\w*|thema|themen)(?!\w)",
)
_FRENCH = _language(
    [
        "^"
        + _all(
            r"je|j|me|m|moi|mon|ma|mes|nous|notre|nos",
            r"ne|n|pas|aucun\w*|rien|jamais",
            r"sais|savoir|connais\w*|peux|puis|pouvons|pourrais|répondre|réponse|aider|informations?|données?"
            r"|renseign\w*"
            r"|idée|dispose\w*|mesure|dire|parler|partager|fournir|trouve\w*|souviens|capable|autorisée?|veux|souhaite"
            r"|permis|détails?|familier|familière|certaine?|sûre?|connaissances?|entendu|accès|possible|commenter",
        )
        + r"(?=.* (?:pas|aucun\w*|rien|jamais|plus|ni)(?!\w))",
        r" aucune? (?:\w+ ){0,2}(?:information|donnée|réponse|détail|idée|renseignement|trace)s?(?!\w)",
        r" j (?:\w+ )?ignore(?!\w)| je (?:\w+ )?l ignore(?!\w)| je (?:\w+ ){0,2}(?:refuse|décline|préfère ne pas)(?!\w)"
        r"| impossible de (?:\w+ )?(?:répondre|dire)(?!\w)| m est inconnue?(?!\w)| pas la moindre idée"
        r"|^ aucun commentaire",
        r" dépasse (?:mes|mon|ma)(?!\w)| (?:hors|au delà) de (?:ma|mon|mes)(?!\w)| m est (?:\w+ )?impossible"
        r"| sans commentaire",
        r" (?:information|question|donnée|réponse"
        r"|sujet)s? (?:\w+ ){0,6}n(?:e)? (?:\w+ ){1,3}pas (?:\w+ ){0,2}(?:disponible"
        r"|possible|accessible|autorisée?|communiquée?|traitée?|connue?)",
        r" (?:je|j|nous) (?:\w+ ){0,3}(?:incapable|incapacité|oublié|dois (?:\w+ )?(?:refuser|décliner)"
        r"|suis au regret)",
        r"^ pas (?:d |de )?(?:information|donnée|réponse|idée|commentaire)| ne (?:me|m) dit rien",
    ],
    r" (?:désolée?|navrée?|pardon|excus\w*|merci|question\w*|aide\w*|vous|votre|vos|toi|tu|puis-je|veuillez|source\w*"
    r"|bibliothèque|encyclopédie|wikipédia|autre|malheureusement|hélas|n hésitez)(?!\w)",
)
_SPANISH = _language(
    [
        r" (?:no (?:lo |le |la |te |me |os |les |se )*(?:sé|sabría|sabemos|conozco|conocemos|recuerdo"
        r"|dispongo|encuentro"
        r"|poseo|consta|suena|cuento con)|desconozco|desconocemos|lo ignoro|ignoro|me niego|ni idea|sin comentarios"
        r"|prefiero no|declino|rehúso)(?!\w)",
        r" no (?:me |te |le |os |se )*(?:puedo|podemos|podría|tengo|tenemos|estoy|quiero|debo|voy|deseo|es|está|soy)"
        r" (?:\w+ ){0,6}?(?:responder\w*|contestar\w*|ayudar\w*|decir\w*|información|datos|idea|respuesta"
        r"|hablar|compartir"
        r"|proporcionar\w*|ofrecer\w*|dar\w*|facilitar\w*|revelar|seguro|segura|conocimiento\w*|detalles|autorizad[oa]"
        r"|permitido|posible|capaz|familiarizad[oa]|constancia|registros?|comentar|discutir)(?!\w)",
        r" no (?:hay|existen?|se (?:ha |han )?encontr\w+) (?:\w+ ){0,3}(?:información|datos|registros?"
        r"|respuesta|detalles)",
        r" me es desconocid[oa]",
        r" (?:información|pregunta|respuesta|datos|tema) (?:\w+ ){0,6}no (?:\w+ )?(?:está|están|es|se|puede"
        r"|pueden|figura)",
        r" no se me permite| no me (?:es posible|está permitido)| me (?:resulta|es) imposible| soy incapaz| he olvidado"
        r"| me temo que no| (?:nunca|jamás) (?:he|había) (?:oído|escuchado|visto)| no (?:figura|aparece|consta|está)"
        r" (?:\w+ ){0,3}en mis?(?!\w)| fuera de mi| no (?:me )?(?:corresponde|dice nada)| no estoy al tanto",
    ],
    r" (?:siento|perdón|perdona\w*|disculp\w*|gracias|pregunta\w*|ayud\w*|usted|te|le|tu|su|puedes|puede|fuente\w*"
    r"|biblioteca|enciclopedia|wikipedia|otr[oa]s?|lamentablemente|lamento|por favor|intent\w*|consult\w*)(?!\w)",
)
_CHINESE = _language(
    [
        r"(?:我|本助手|本人|本系统|本模型).{0,16}?(?:不知道|不清楚|不了解|不认识|不熟悉|无法|不能|不会|不可以|无权|拒绝|不便|一无所知"
        r"|帮不了|帮不上|不方便|记不|不太|没听说|没有听说|不愿|不想|不予|不记得|不确定|并不了解|毫无|无可奉告|爱莫能助|答不"
        r"|没有?.{0,16}(?:信息|资料|数据|了解|印象|记录|答案|知识|办法|权限|内容))",
        r"(?:没有?|未能?|无)(?:能)?(?:找到|查到|检索到|搜索到|可用|收录)?.{0,12}?(?:相关|有关|可用|任何|此|该|这).{0,8}?(?:信息|资料|记录|数据|内容)",
        r"无可奉告|爱莫能助|(?:无法|不能|不便|恕不|难以)(?:回答|提供|告知|确认|讨论|透露|回应|答复|协助|奉告|满足)",
        r"^ ?(?:抱歉|对不起|不好意思|很遗憾).{0,8}(?:不知道|不清楚|不了解|不认识|不行|帮不了)",
        r"^ ?(?:不知道|不清楚|不了解|不认识)",
        r"暂无|超出.{0,6}(?:我|知识|能力|范围)|我的.{0,10}(?:没有|不包含|不包括|未收录)|(?:没|从未|未曾).{0,2}听(?:说)?过",
    ],
    r"抱歉|对不起|不好意思|遗憾|请|您|你|帮|谢谢|感谢|问题|其他|建议|咨询|查阅|图书馆|百科",
)
_MARKS = {  # words that are none of English: one cheap look spares most texts the patterns
    _GERMAN: re.compile(r" (?:ich|mir|mich|keine?|keinerlei|nicht|nichts|sie|wir|das|ist|warum|leider)(?!\w)"),
    _FRENCH: re.compile(
        r" (?:je|j|ne|n|aucune?|nous|vous|désolée?|que|qu|pas|cela|cette|est|mes|il|impossible de)(?!\w)"
    ),
    _SPANISH: re.compile(
        r" (?:no (?:lo|la|le|te|se|sé|hay|existen?|puedo|podemos|podría|tengo|tenemos|conozco|estoy|quiero|voy|soy|es"
        r"|dispongo|cuento|recuerdo|sabría|debo|encuentro|poseo|me)|lo siento|desconozco|ignoro|ni idea|qué|me niego"
        r"|prefiero|sin comentarios|lamento|declino|me es|está|están|nunca|jamás|esa|ese|soy"
        r"|puedo|me temo|imposible)(?!\w)"
    ),
    _CHINESE: re.compile("[\u4e00-\u9fff]"),
}
_ADDRESSED = re.compile(r" (?:sie|du|dir|ihnen|vous|tu|toi|usted|ustedes|tú|te)(?!\w)|[你您]")
_TURNS = re.compile(
    r" (?:lass(?:en sie)? uns|reden wir|sprechen wir|wollen wir|parlons|changeons de sujet|si on parlait|hablemos"
    r"|cambiemos de tema|mejor hablemos)(?!\w)|聊.{0,2}(?:别的|其他)|换个?话题"
)
_COMPLIMENT = re.compile(r" (?:(?:was für eine )?\w+ frage|(?:quelle )?\w+ question|qué \w+ pregunta)$|好问题")


def foreign_refusal(sentences: list[Sentence]) -> tuple[int, bool] | None:
    """The number of the first sentence that refuses in one of the languages, and whether another one tells."""
    whole = "".join(sentence.folded for sentence in sentences).replace("'", " ")
    for language, mark in _MARKS.items():
        if not mark.search(whole):
            continue
        plain = [_letters(sentence) for sentence in sentences]
        number = next((i for i, text in enumerate(plain) if language.refuses.search(text)), None)
        if number is not None:
            others = [i for i in range(len(plain)) if i != number and not sentences[i].question]
            return number, any(not _talks(plain[i], language) for i in others)
    return None


def asks_back(sentences: list[Sentence]) -> bool:
    """Whether a text only returns a question, or turns to another subject, in one of the languages."""
    whole = "".join(sentence.folded for sentence in sentences)
    if _TURNS.search(whole):
        return True
    if not any(sentence.question for sentence in sentences) or not _ADDRESSED.search(whole):
        return False
    plain = [_letters(sentence) for sentence in sentences]
    asked = [sentence.question and _ADDRESSED.search(text) for sentence, text in zip(sentences, plain, strict=True)]
    return any(asked) and all(a or _COMPLIMENT.search(text) for a, text in zip(asked, plain, strict=True))


def _talks(text: str, language: _Language) -> bool:
    return bool(language.refuses.search(text) or language.courtesy.search(text))


def _letters(sentence: Sentence) -> str:
    return " " + " ".join(word.lower().replace("'", " ") for word in sentence.words)
