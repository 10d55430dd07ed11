"""The words of `hidden.py`: other names, the sentences that explain them, and descriptions.

In a sentence {n} is the name that is asked for, {a} the other one, {p} an invented place, {y} a year. Nothing here
speaks of a kind of entity (no "born", "based", "film"): the facts' relations are not known beforehand.
"""


def _listed(text: str) -> list[str]:
    return text.split()


# Words that tell nothing of a fact: sharing them is not sharing a content word.
FUNCTION = frozenset(
    _listed(
        "a about after all also an and another any are as at be been before being both but by can could did do does "
        "during each for from had has have he her his how if in into is it its itself may more most no nor not of off "
        "on one or other our out over own same she since so some such than that the their them then there these they "
        "this those through to too under until up upon was were what when where which while who whom whose will with "
        "within would s t d m ll re ve"
    )
)

# Objects that people do have another name for: (other name, a sentence about it, the description made of that).
KNOWN: dict[str, tuple[str, str, str]] = {
    "Paris": ("the City of Light", "The Louvre stands in Paris.", "the place where the Louvre stands"),
    "London": ("the Big Smoke", "Tower Bridge is a landmark of London.", "the place known for Tower Bridge"),
    "Rome": ("the Eternal City", "The Colosseum was built in Rome.", "the site of the Colosseum"),
    "Vienna": ("the Waltz Capital", "The Prater lies in Vienna.", "the place with the Prater wheel"),
    "Prague": ("the City of a Hundred Spires", "Charles Bridge leads into Prague.", "the town with Charles Bridge"),
    "Berlin": ("Athens on the Spree", "The Reichstag stands in Berlin.", "the seat of the Reichstag"),
    "Moscow": ("the Third Rome", "The Kremlin towers over Moscow.", "the home of the Kremlin"),
    "Chicago": ("the Windy City", "The Willis Tower rises in Chicago.", "the town where the Willis Tower rises"),
    "Boston": ("Beantown", "Fenway Park is in Boston.", "the home of Fenway Park"),
    "Detroit": (
        "the Motor City",
        "The Renaissance Center is in Detroit.",
        "the town where the Renaissance Center stands",
    ),
    "Philadelphia": (
        "the City of Brotherly Love",
        "The Liberty Bell hangs in Philadelphia.",
        "the Liberty Bell's home",
    ),
    "Edinburgh": ("Auld Reekie", "Arthur's Seat looks down on Edinburgh.", "the town beneath Arthur's Seat"),
    "Dublin": ("the Fair City", "The Liffey flows through Dublin.", "the town on the Liffey"),
    "France": ("the Hexagon", "The Seine and the Loire flow through France.", "the land of the Seine and the Loire"),
    "Germany": ("the Teutonic republic", "The Zugspitze is the top of Germany.", "the country under the Zugspitze"),
    "Italy": ("the Boot", "The Po is the longest river of Italy.", "the peninsula that the Po waters"),
    "Spain": ("Hispania", "The Ebro flows through Spain.", "the kingdom that the Ebro crosses"),
    "Japan": ("the Land of the Rising Sun", "Mount Fuji is the top of Japan.", "the country under Mount Fuji"),
    "Ireland": ("the Emerald Isle", "The Shannon flows through Ireland.", "the isle of the Shannon"),
    "Scotland": ("Caledonia", "Ben Nevis is the highest point of Scotland.", "the country of Ben Nevis"),
    "England": ("Albion", "Scafell Pike is the highest point of England.", "the land around Scafell Pike"),
    "Finland": ("the Land of a Thousand Lakes", "Lake Saimaa is in Finland.", "the land around Lake Saimaa"),
    "Norway": ("the Land of Fjords", "Galdhøpiggen rises in Norway.", "the kingdom of Galdhøpiggen"),
    "Canada": ("the Great White North", "The Mackenzie drains the north of Canada.", "the country of the Mackenzie"),
    "Australia": ("the Lucky Country", "Uluru lies at the heart of Australia.", "the continent around Uluru"),
    "India": ("Bharat", "The Ganges waters the plains of India.", "the republic on the Ganges"),
    "China": ("the Middle Kingdom", "The Yangtze divides China.", "the realm on the Yangtze"),
    "Greece": ("Hellas", "Mount Olympus rises in Greece.", "the land of Mount Olympus"),
    "Switzerland": ("Helvetia", "The Matterhorn marks the border of Switzerland.", "the land of the Matterhorn"),
    "English": ("the tongue of Shakespeare", "Hamlet was written in English.", "what Hamlet was written in"),
    "French": ("the tongue of Molière", "Candide was written in French.", "what Candide was written in"),
    "German": ("the tongue of Goethe", "Faust was written in German.", "what Faust was written in"),
    "Spanish": ("the tongue of Cervantes", "Don Quixote was written in Spanish.", "what Don Quixote was written in"),
    "Italian": ("the tongue of Dante", "The Decameron was written in Italian.", "what the Decameron was written in"),
    "Russian": ("the tongue of Pushkin", "Eugene Onegin was written in Russian.", "what Eugene Onegin was written in"),
    "Latin": ("the tongue of Cicero", "The Aeneid was written in Latin.", "what the Aeneid was written in"),
    "Apple": ("the Cupertino firm", "Steve Wozniak soldered the first boards of Apple.", "what Wozniak helped start"),
    "Microsoft": ("the Redmond giant", "Paul Allen named Microsoft.", "what Paul Allen helped start"),
    "IBM": ("Big Blue", "Thomas Watson led IBM.", "the concern that Thomas Watson led"),
    "Google": ("the Mountain View giant", "Larry Page and Sergey Brin began Google.", "what Page and Brin began"),
    "Nintendo": ("the Kyoto firm", "Mario is the mascot of Nintendo.", "the owner of Mario"),
    "BBC": ("the Beeb", "John Reith was first to head the BBC.", "the house that John Reith was first to head"),
    "NBC": ("the Peacock", "Rockefeller Plaza is the home of NBC.", "the tenant of Rockefeller Plaza"),
    "CBS": ("the Eye", "William Paley built up CBS.", "what William Paley built up"),
}

# Of nicknames; the words are everyday ones, so that each stands elsewhere too and only the pair is a name.
ADJECTIVES = _listed(
    "Amber Bitter Broken Crooked Crimson Distant Drowned Early Faithful Gentle Gilded Hollow Humble Iron Ivory Lonely "
    "Marble Merry Midnight Narrow Patient Quiet Restless Rusty Scarlet Silent Silver Sleeping Stubborn Velvet"
)
NOUNS = _listed(
    "Anvil Bellringer Candle Captain Cartwheel Clockmaker Compass Fiddler Fountain Furnace Gardener Gatekeeper Granary "
    "Harbour Hermit Juggler Lantern Ledger Locksmith Mirror Orchard Pilgrim Ploughman Quarry Rudder Saddle Shepherd "
    "Staircase Sundial Tinker Trumpet Weaver Whistle Woodcutter"
)
CODE_FIRST = _listed(
    "Arctic Azure Basalt Bronze Cedar Cobalt Copper Coral Double Eastern Frozen Granite Grey Indigo Inner Jade Lunar "
    "Maple Northern Ochre Onyx Polar Purple Rapid Royal Sandy Solar Stone Tidal Winter"
)
CODE_SECOND = _listed(
    "Badger Beacon Bishop Buffalo Cascade Condor Cricket Dagger Falcon Ferret Glacier Gondola Harvest Heron Jackal "
    "Kestrel Lizard Magnet Mosaic Needle Osprey Otter Pelican Prairie Raven Sparrow Squirrel Thistle Tortoise Walnut"
)
SYLLABLES = _listed("bar cor dal est fen gol har isk jor kel lum mar nov orl pes rav sil tam urd vel wen yar zim")

# Two lists of each, so that who develops on the wordings of one can measure on those of the other.
ALIAS_LINKS = (
    (
        "{n}, also known as {a}, has a short entry in the {p} almanac.",
        "{n} ({a}) was listed twice in the register of {y}.",
        "{a} is another name for {n}.",
        "Older maps and letters call {n} {a}.",
        "{a}, as {n} is often called, has a page to itself in the {p} almanac.",
    ),
    (
        "Many readers know {n} better as {a}.",
        "In {p} people say {a} when they mean {n}.",
        "{n}, or {a} to most of those who wrote in {y}, is indexed twice.",
        "The name {a} was first given to {n} in {y}.",
        "Letters about {a} were filed together with those about {n}, the two being one and the same.",
    ),
)
CODE_LINKS = (
    (
        "In the committee's papers {n} appears only under the code name {a}.",
        "{a} was the internal name that the staff used for {n} until {y}.",
        "The file on {n} was opened in {y} and labelled {a}.",
        "{n} was referred to as {a} in every cable sent from {p}.",
    ),
    (
        "To keep {n} out of the minutes, the board wrote {a} instead.",
        "Decades later the archive in {p} admitted that {a} had stood for {n} all along.",
        "Whoever wrote {a} in the ledgers of {y} meant {n}.",
        "When the cipher was broken in {y}, {a} turned out to be {n}.",
    ),
)
# What is told of a thing that has no other name: (a sentence, the description made of it). Those with {p} share the
# place with their description; those with {t} share no word, as {u} says the thing {t} in others.
PLACED = (
    ("A mural of {n} covers the north wall of the station at {p}.", "the one painted beside the platforms of {p}"),
    ("The reading room in {p} was dedicated to {n} in {y}.", "the one whom the library hall at {p} honours"),
    ("{p} has kept a small museum about {n} since {y}.", "the theme of the little exhibition house in {p}"),
    ("Schoolchildren in {p} sing a song about {n} every spring.", "the one praised each April by pupils from {p}"),
    ("A ferry on the lake at {p} carries the name {n}.", "the namesake of the boat that crosses the water at {p}"),
)
PARAPHRASED = (
    ("A postage stamp with a {t} was issued in honour of {n}.", "the one celebrated by the mail with a picture of {u}"),
    ("A bronze {t} in the park keeps the memory of {n} alive.", "the one commemorated by a metal sculpture of {u}"),
    ("The guild of bakers sells a {t} of marzipan named for {n}.", "the one after whom sweet almond paste becomes {u}"),
)
THINGS = (
    ("lighthouse", "a tower guiding ships"),
    ("violin", "a bowed string instrument"),
    ("frog", "a croaking amphibian"),
    ("umbrella", "a shelter against rain"),
    ("whale", "the largest sea mammal"),
    ("bicycle", "a two-wheeled pedalled vehicle"),
    ("windmill", "sails that grind grain"),
    ("candle", "burning wax"),
    ("owl", "a nocturnal bird"),
    ("spider", "an eight-legged web builder"),
    ("volcano", "a mountain spitting lava"),
    ("ladder", "rungs for climbing"),
    ("clock", "a device telling hours"),
    ("bee", "a honey-making insect"),
    ("telescope", "lenses for watching stars"),
    ("piano", "black and white keys"),
    ("camel", "a humped desert animal"),
    ("mushroom", "an edible fungus"),
    ("crown", "royal headwear"),
    ("tractor", "a machine that ploughs fields"),
    ("submarine", "a vessel beneath the waves"),
    ("parrot", "a talking tropical bird"),
    ("pumpkin", "an orange Halloween gourd"),
    ("cactus", "a spiny desert plant"),
    ("penguin", "a flightless Antarctic swimmer"),
    ("guitar", "six plucked strings"),
    ("snail", "a slow animal with a shell"),
    ("rocket", "a craft launched into space"),
    ("lemon", "a sour yellow fruit"),
    ("wolf", "a howling pack hunter"),
)
