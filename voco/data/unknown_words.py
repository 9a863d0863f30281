"""Words for a label that is not known, as programs and people write them, in lower case."""

_WORDS = r"""
    #getting_data | #n/a | #n/a n/a | #n/b | #n/d | #n/v | #na | #nv | #yok | +nan | -1.#ind | -1.#qnan | -nan | . |
    .. | ... | 1.#ind | 1.#qnan | ? | ?? | ??? | \n | bilinmiyor | brak danych | desconhecida | desconhecido |
    desconocida | desconocido | ignorado | ikke kendt | inconnu | inconnue | ismeretlen | k. a. | k.a. |
    keine angabe | keine angaben | keine daten | không rõ | missing | missing value | n.a | n.a. | n.v.t. | n/a |
    n/d | na | na_character_ | na_integer_ | na_real_ | nan | nat | necunoscut | neznámé | neznámý | nicht bekannt |
    nicht erhoben | niet bekend | nieznane | nieznany | no aplica | no consta | no data | no disponible |
    no information | no value | non connu | non disponibile | non disponible | non noto | non précisé |
    non renseigné | not applicable | not assessed | not available | not collected | not determined | not done |
    not evaluated | not known | not provided | not rated | not recorded | not reported | not specified | not stated |
    not tested | null | não disponível | não informado | okänd | okänt | onbekend | pending | s.o. | sconosciuta |
    sconosciuto | sem dados | sin dato | sin datos | tba | tbd | to be determined | tuntematon | ukendt | ukjent |
    unbekannt | undefined | unk | unknown | unspecified |
    #н/д | άγνωστο | н.д. | н/д | не известно | невідомо | неизвестен | неизвестно | нет данных | לא ידוע |
    غير متوفر | غير معروف | نامشخص | अज्ञात | ไม่ทราบ | データなし |
    不明 | 不詳 | 不详 | 不适用 | 无数据 | 未测 | 未知 | 無資料 | 缺失 | 該当なし |
    미상 | 알 수 없음
"""
# Of R, pandas, Excel, SAS, SQL and people; spreadsheets' errors (``#REF!``) are found by their signs.
UNKNOWN_WORDS = frozenset(word.strip() for word in _WORDS.split("|"))
# Some write these for an unknown label and others for a class ("no finding").
MAYBE_WORDS = frozenset(
    {"none", "nil", "nd", "n.d.", "n.d", "nothing", "blank", "empty", "*", "undetermined", "keine", "aucun", "ninguno"}
)
