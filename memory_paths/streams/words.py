"""Word lists and wordings of the biographies world. Data only; every name is one word, so that it is one token."""

from __future__ import annotations

from dataclasses import dataclass

FIRST_NAMES: tuple[str, ...] = tuple(
    """Adela Agnes Albert Alma Alvin Amos Anita Anton Arlo Astrid Barbara Basil Beatrice Benno Berta Bianca Boris Brenda
    Bruno Camilla Carl Cecil Celia Clara Clement Conrad Cora Cyril Dagmar Damian Daphne Darius Delia Dennis Dexter Diana
    Doris Edgar Edith Edmund Egon Elena Elias Elmer Elsa Emil Enid Erica Ernest Esther Eugene Eunice Evelyn Ezra Fabian
    Felix Ferdinand Fiona Flora Floyd Frances Franz Frieda Gabriel Gemma Gerald Gerda Gideon Gilbert Gloria Greta Gustav
    Hanna Harald Hazel Hector Hedwig Helena Herbert Hilda Homer Horace Hugo Ida Igor Ilse Imogen Ingrid Irene Iris Irma
    Isaac Ivan Ivor Jasper Joan Joel Jonas Josefa Joyce Judith Julius June Karin Karl Katja Kirsten Konrad Kurt Lambert
    Lara Laura Leander Lena Leo Leonie Leopold Lilian Linus Lionel Lois Lorenz Lotte Lucian Lucy Ludwig Luther Mabel
    Magda Malcolm Marcel Margot Marian Marlene Martha Matilda Max Melvin Mercy Mildred Milo Mina Miriam Monica Morris
    Muriel Myra Nadia Naomi Neil Nestor Nina Noel Nora Norbert Norma Olaf Olga Oliver Olive Oscar Oswald Otto Paula
    Percy Petra Philip Phoebe Quentin Rachel Ralph Ramona Regina Reuben Rita Robin Roland Rosa Rufus Rupert Ruth Sabine
    Samson Selma Sidney Silas Silvia Simon Solveig Stella Sven Tabea Tamara Theo Thora Tilda Tobias Ulric Ursula Vera
    Victor Viola Wanda Wilma Winston Xenia Yvette Zelda""".split()
)


def _compose(heads: str, tails: str) -> tuple[str, ...]:
    return tuple(head + tail for head in heads.split() for tail in tails.split())


LAST_NAMES = _compose(
    "Ash Barr Birch Black Brack Bram Cald Carl Crow Dun Elder Fair Farn Gar Hal Harg Hart Hol Kings Lang Mar Nor Pem "
    "Quar Rad",
    "away bourne bury combe croft dale ford grave hurst man son wick",
)
TOWNS = _compose(
    "Al Bel Cor Dor El Fen Gal Hol Il Jor Kel Lor Mal Nar Or Pel Quen Ros Sel Tor",
    "avia bach dova essa gard heim istra kirk lund mere novo polis",
)
CITIES = TOWNS[::4]
FIRMS = _compose(
    "Acti Bolt Cryo Delta Ever Flux Gyro Helio Iso Kilo Lumi Mega Nova Omni Poly Quanta Rivo Stella Terra Ultra",
    "corp dyne flow labs tech works",
)
UNIVERSITIES = _compose("Abbot Bishop Cardinal Dean Friar King Monk Prior Queen Saint", "gate hall house stead")
PROFESSIONS: tuple[str, ...] = tuple(
    """baker banker barber biologist bookseller botanist brewer bricklayer butcher carpenter chemist clerk coach cook
    dancer dentist detective diver doctor driver farmer fisherman florist gardener geologist glazier goldsmith guard
    jeweller journalist judge lawyer librarian locksmith mason mechanic miller miner nurse painter pharmacist physicist
    pilot plumber poet potter printer sailor sculptor shepherd singer surgeon tailor teacher translator waiter weaver
    welder""".split()
)
HOBBIES: tuple[str, ...] = tuple(
    """archery astronomy badminton baking basketry birdwatching bowling boxing calligraphy camping canoeing carving
    chess climbing cycling dancing darts diving drawing embroidery fencing fishing gardening golf gymnastics hiking judo
    juggling
    karate kayaking knitting origami photography poker pottery quilting riding rowing running sailing sewing singing
    skating skiing surfing swimming tennis woodwork wrestling yoga""".split()
)


@dataclass(frozen=True)
class Wordings:
    """Ways to state one attribute and to ask for it.

    Args:
        statements: With `{name}` and, as the last word, `{value}`. All occur in pretraining, with other people.
        questions: With `{name}`. All occur in pretraining, with other people.
        new_statements: Occur in no training at all (the second tier).
        new_questions: Occur in no training at all (the second tier).
        reversals: With `{value}`: which name goes with it?
    """

    statements: tuple[str, ...]
    questions: tuple[str, ...]
    new_statements: tuple[str, ...]
    new_questions: tuple[str, ...]
    reversals: tuple[str, ...] = ()


WORDINGS: dict[str, Wordings] = {
    "birthplace": Wordings(
        (
            "{name} was born in {value}.",
            "{name} comes from {value}.",
            "{name} is a native of {value}.",
            "The birthplace of {name} is {value}.",
            "The home town of {name} is {value}.",
        ),
        (
            "Where was {name} born?",
            "What is the birthplace of {name}?",
            "Which town does {name} come from?",
            "What is the home town of {name}?",
            "In which town was {name} born?",
        ),
        ("The town that {name} comes from is {value}.",),
        ("From which town does {name} come?", "Of which town is {name} a native?"),
        ("Who was born in {value}?", "Who comes from {value}?", "Who is a native of {value}?"),
    ),
    "home": Wordings(
        (
            "{name} lives in {value}.",
            "{name} has a house in {value}.",
            "The home of {name} is in {value}.",
            "{name} resides in {value}.",
            "{name} has settled in {value}.",
        ),
        (
            "Where does {name} live?",
            "In which city does {name} live?",
            "Where is the home of {name}?",
            "In which city does {name} have a house?",
            "Where does {name} reside?",
        ),
        ("The house of {name} is in {value}.",),
        ("In which city does {name} reside?", "Where is the house of {name}?"),
    ),
    "employer": Wordings(
        (
            "{name} works for {value}.",
            "The employer of {name} is {value}.",
            "{name} is employed by {value}.",
            "{name} has a job at {value}.",
            "{name} is on the staff of {value}.",
        ),
        (
            "Who does {name} work for?",
            "What is the employer of {name}?",
            "Which firm employs {name}?",
            "At which firm does {name} have a job?",
            "By which firm is {name} employed?",
        ),
        ("The firm of {name} is {value}.",),
        ("For which firm does {name} work?", "Which employer does {name} have?"),
    ),
    "profession": Wordings(
        (
            "{name} works as a {value}.",
            "{name} is a {value}.",
            "The profession of {name} is {value}.",
            "{name} earns a living as a {value}.",
            "By trade {name} is a {value}.",
        ),
        (
            "What is the profession of {name}?",
            "What does {name} work as?",
            "What is {name} by trade?",
            "As what does {name} earn a living?",
            "Which profession does {name} have?",
        ),
        ("The trade of {name} is {value}.",),
        ("What is the trade of {name}?", "What does {name} earn a living as?"),
    ),
    "university": Wordings(
        (
            "{name} studied at {value}.",
            "{name} went to university at {value}.",
            "{name} is a graduate of {value}.",
            "{name} took a degree at {value}.",
            "The degree of {name} is from {value}.",
        ),
        (
            "Where did {name} study?",
            "Which university did {name} go to?",
            "At which university did {name} take a degree?",
            "Of which university is {name} a graduate?",
            "From which university is the degree of {name}?",
        ),
        ("The university of {name} is {value}.",),
        ("At which university did {name} study?", "What is the university of {name}?"),
    ),
    "hobby": Wordings(
        (
            "{name} enjoys {value}.",
            "The hobby of {name} is {value}.",
            "{name} is fond of {value}.",
            "In free time {name} likes {value}.",
            "{name} spends weekends on {value}.",
        ),
        (
            "What does {name} enjoy?",
            "What is the hobby of {name}?",
            "What is {name} fond of?",
            "What does {name} like in free time?",
            "On what does {name} spend weekends?",
        ),
        ("On weekends {name} enjoys {value}.",),
        ("Which hobby does {name} have?", "What does {name} enjoy in free time?"),
    ),
    "seat": Wordings(
        (
            "{name} is based in {value}.",
            "The head office of {name} is in {value}.",
            "{name} has its seat in {value}.",
            "{name} is run from {value}.",
            "The seat of {name} is {value}.",
        ),
        (
            "Where is {name} based?",
            "In which city is the head office of {name}?",
            "Where does {name} have its seat?",
            "From which city is {name} run?",
            "What is the seat of {name}?",
        ),
        ("The head office that runs {name} is in {value}.",),
        ("In which city is {name} based?", "Where is the head office of {name}?"),
    ),
}
COMPOSITIONS: tuple[str, ...] = (
    "Where is the employer of {name} based?",
    "In which city is the head office of the employer of {name}?",
    "Where does the employer of {name} have its seat?",
    "From which city is the employer of {name} run?",
)
"""Person to employer to the employer's seat."""

VALUES: dict[str, tuple[str, ...]] = {
    "birthplace": TOWNS,
    "home": CITIES,
    "employer": FIRMS,
    "profession": PROFESSIONS,
    "university": UNIVERSITIES,
    "hobby": HOBBIES,
    "seat": CITIES,
}
PERSON_ATTRIBUTES: tuple[str, ...] = ("birthplace", "home", "employer", "profession", "university", "hobby")
