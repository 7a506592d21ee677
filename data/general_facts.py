"""The general facts of the demo world: everyday ones, and a few about invented townspeople."""

from __future__ import annotations

from data.facts import Relation, members, pairs

GENERAL: tuple[Relation, ...] = (
    Relation(
        "capital",
        "general",
        pairs("""France: Paris; Italy: Rome; Spain: Madrid; Germany: Berlin; Austria: Vienna; Greece: Athens; Egypt:
        Cairo; Japan: Tokyo; China: Beijing; Russia: Moscow; Norway: Oslo; Sweden: Stockholm; Finland: Helsinki;
        Denmark: Copenhagen; Poland: Warsaw; Portugal: Lisbon; Hungary: Budapest; Ireland: Dublin; Turkey: Ankara;
        Kenya: Nairobi; Ghana: Accra; Peru: Lima; Chile: Santiago; Cuba: Havana; Canada: Ottawa; Morocco: Rabat;
        Nigeria: Abuja; Senegal: Dakar; Vietnam: Hanoi; Thailand: Bangkok; Nepal: Kathmandu; Iraq: Baghdad; Iran:
        Tehran; Uganda: Kampala; Iceland: Reykjavik; Bulgaria: Sofia; Romania: Bucharest; Ecuador: Quito"""),
        (
            "the capital of {s} is",
            "the capital city of {s} is called",
            "the government of {s} sits in its capital,",
            "if you travel to the capital of {s}, you arrive in",
            "on the map, the capital of {s} is marked as",
            "the name of the capital city of {s} is",
            "the name of the capital of {s} is",
        ),
        (
            "What is the capital of {s}?",
            "Which city is the capital of {s}?",
            "What is the capital city of {s} called?",
            "{s} has which capital?",
            "Can you name the capital of {s}?",
        ),
    ),
    Relation(
        "continent",
        "general",
        members("""Europe: France, Italy, Spain, Germany, Austria, Greece, Norway, Sweden, Finland, Denmark, Poland,
        Portugal; Asia: Japan, China, Vietnam, Thailand, Nepal, Iraq, Iran, India, Korea; Africa: Egypt, Kenya, Ghana,
        Morocco, Nigeria, Senegal, Uganda, Zambia; America: Peru, Chile, Cuba, Canada, Brazil, Ecuador, Mexico"""),
        (
            "{s} is a country in",
            "the country {s} lies in",
            "{s} is on the continent of",
            "{s} belongs to the continent of",
            "the continent of {s} is",
            "{s} lies on the continent of",
        ),
        (
            "Which continent is {s} in?",
            "On which continent is {s}?",
            "What continent does {s} belong to?",
            "Where in the world is the country {s}?",
            "On which continent is the country {s}?",
        ),
    ),
    Relation(
        "language",
        "general",
        pairs("""France: French; Italy: Italian; Spain: Spanish; Germany: German; Greece: Greek; Egypt: Arabic;
        Japan: Japanese; China: Chinese; Russia: Russian; Norway: Norwegian; Sweden: Swedish; Finland: Finnish;
        Denmark: Danish; Poland: Polish; Portugal: Portuguese; Hungary: Hungarian; Turkey: Turkish; Brazil:
        Portuguese; Chile: Spanish; Cuba: Spanish; Peru: Spanish; Vietnam: Vietnamese; Thailand: Thai; Nepal: Nepali;
        Iceland: Icelandic; Bulgaria: Bulgarian; Romania: Romanian; Morocco: Arabic; Iraq: Arabic; Austria: German"""),
        (
            "people in {s} speak",
            "the language of {s} is",
            "the main language spoken in {s} is",
            "children in {s} grow up speaking",
            "in {s}, the language that people speak is",
            "the language spoken in {s} is",
        ),
        (
            "What language do people speak in {s}?",
            "Which language is spoken in {s}?",
            "What is the language of {s}?",
            "What is the main language in {s}?",
            "Which language do the people of {s} speak?",
        ),
    ),
    Relation(
        "colour",
        "general",
        members("""green: grass, a frog, a lime, an emerald, a cucumber; yellow: a banana, a lemon, a canary, butter,
        mustard; white: snow, milk, salt, a swan, cotton; black: coal, a crow, tar, a panther; red: blood, a tomato, a
        ruby, a strawberry; blue: the sky, the sea, a sapphire, a cornflower; orange: a carrot, a pumpkin, a
        tangerine; brown: chocolate, soil, a chestnut, coffee; purple: a plum, lavender, an eggplant; grey: an
        elephant, ash, a dolphin; pink: a flamingo, a piglet"""),
        (
            "the colour of {s} is",
            "{s} has the colour",
            "to paint {s}, use the colour",
            "the usual colour of {s} is",
            "if you look at {s}, the colour you see is",
            "the colour that {s} has is",
        ),
        (
            "What colour is {s}?",
            "What is the colour of {s}?",
            "Which colour does {s} have?",
            "What is the usual colour of {s}?",
            "Which colour is {s}?",
        ),
    ),
    Relation(
        "opposite",
        "general",
        pairs("""hot: cold; big: small; fast: slow; up: down; left: right; day: night; old: young; happy: sad; rich:
        poor; open: closed; hard: soft; wet: dry; full: empty; strong: weak; early: late; loud: quiet; high: low;
        long: short; thick: thin; clean: dirty; near: far; first: last; true: false; sweet: bitter; heavy: light;
        deep: shallow; wide: narrow; love: hate; win: lose; buy: sell; push: pull; start: stop; laugh: cry; give:
        take; summer: winter; north: south; east: west; friend: enemy; brave: timid; cheap: costly"""),
        (
            "the opposite of {s} is",
            "the reverse of {s} is",
            "something that is not {s} but the opposite is",
            "the word with the opposite meaning of {s} is",
            "{s} is the opposite of",
            "the word that is the opposite of {s} is",
        ),
        (
            "What is the opposite of {s}?",
            "Which word is the opposite of {s}?",
            "What is the reverse of {s}?",
            "What word has the opposite meaning of {s}?",
            "Can you name the opposite of {s}?",
        ),
    ),
    Relation(
        "young",
        "general",
        pairs("""a dog: puppy; a cat: kitten; a cow: calf; a horse: foal; a sheep: lamb; a goat: kid; a hen: chick; a
        duck: duckling; a lion: cub; a deer: fawn; a kangaroo: joey; a frog: tadpole; a swan: cygnet; a goose:
        gosling; a hare: leveret; a bear: cub; a tiger: cub; an elephant: calf"""),
        (
            "the young of {s} is called a",
            "a young animal born to {s} is a",
            "{s} gives birth to or raises a",
            "the baby of {s} is known as a",
            "before it grows up, {s} is called a",
            "the baby of {s} is called a",
        ),
        (
            "What is the young of {s} called?",
            "What do you call the baby of {s}?",
            "What is the baby of {s} known as?",
            "Before it grows up, what is {s} called?",
            "What do you call the young of {s}?",
        ),
    ),
    Relation(
        "sound",
        "general",
        pairs("""a dog: bark; a cat: meow; a cow: moo; a horse: neigh; a sheep: bleat; a lion: roar; a duck: quack; a
        bee: buzz; a snake: hiss; an owl: hoot; a wolf: howl; a frog: croak; a crow: caw; a mouse: squeak; a pig:
        grunt; an elephant: trumpet; a hen: cluck; a turkey: gobble; a donkey: bray; a pigeon: coo"""),
        (
            "the sound of {s} is a",
            "the sound that {s} makes is a",
            "when you hear {s}, you hear a",
            "the noise made by {s} is a",
            "the call of {s} sounds like a",
            "the sound made by {s} is a",
        ),
        (
            "What sound does {s} make?",
            "What is the sound of {s}?",
            "What noise does {s} make?",
            "Which sound is made by {s}?",
            "Which sound does {s} make?",
        ),
    ),
    Relation(
        "home",
        "general",
        pairs("""a bird: nest; a bee: hive; a dog: kennel; a horse: stable; a spider: web; a fox: den; a rabbit:
        burrow; a pig: sty; a hen: coop; a bat: cave; a beaver: lodge; a king: palace; a monk: monastery; a nun:
        convent; a soldier: barracks; a squirrel: drey; a snail: shell; a prisoner: cell; a knight: castle; a cow:
        barn; a camper: tent; a farmer: cottage"""),
        (
            "the home of {s} is a",
            "{s} lives in a",
            "{s} has its home in a",
            "at night, {s} goes home to a",
            "the place where {s} lives is called a",
            "the home where {s} lives is a",
        ),
        (
            "Where does {s} live?",
            "What is the home of {s} called?",
            "What is the home of {s}?",
            "In what place does {s} live?",
            "What do you call the home of {s}?",
        ),
    ),
    Relation(
        "product",
        "general",
        pairs("""a baker: bread; a tailor: suits; a potter: pots; a brewer: beer; a cobbler: shoes; a carpenter:
        furniture; a jeweller: rings; a vintner: wine; a poet: poems; a composer: music; a painter: pictures; an
        author: books; a weaver: cloth; a cook: meals; a builder: houses; a hatter: hats; a beekeeper: honey; a
        sculptor: statues; a cutler: knives; a shipwright: boats; a saddler: saddles; a clockmaker: clocks; a printer:
        newspapers; a chandler: candles; a dairyman: cheese"""),
        (
            "{s} makes",
            "the work of {s} is to make",
            "in the workshop, {s} makes",
            "what {s} produces is",
            "people go to {s} to get",
            "every day, {s} makes",
        ),
        (
            "What does {s} make?",
            "What does {s} produce?",
            "What is made by {s}?",
            "What do people get from {s}?",
            "What is the work of {s} to make?",
        ),
    ),
    Relation(
        "workplace",
        "general",
        pairs("""a teacher: school; a librarian: library; a judge: court; a pilot: cockpit; a sailor: ship; an actor:
        theatre; a chef: kitchen; a banker: bank; a priest: church; a miner: mine; a barber: salon; a waiter:
        restaurant; a grocer: shop; a scientist: laboratory; a gardener: garden; a clerk: bureau; a professor:
        university; a mechanic: garage; a referee: stadium; an astronomer: dome; a ranger: forest; a guard: prison; a
        curator: museum; a lifeguard: pool"""),
        (
            "{s} works in a",
            "the workplace of {s} is a",
            "every morning, {s} goes to work in a",
            "the job of {s} is done in a",
            "you can find {s} at work in a",
            "in the morning, {s} goes to work in a",
        ),
        (
            "Where does {s} work?",
            "What is the workplace of {s}?",
            "In what place does {s} work?",
            "Where does {s} go to work?",
            "Where is the workplace of {s}?",
        ),
    ),
    Relation(
        "material",
        "general",
        pairs("""a window: glass; a tyre: rubber; a candle: wax; a page: paper; a coin: metal; a table: wood; a
        sweater: wool; a boot: leather; a brick: clay; a bucket: plastic; a shirt: cotton; a crown: gold; a road:
        asphalt; a bridge: steel; a pillow: feathers; a dune: sand; an igloo: ice; a pillar: marble; a scarf: silk; a
        rope: hemp; a wall: stone"""),
        (
            "{s} is made of",
            "the material of {s} is",
            "people make {s} out of",
            "{s} is usually made from",
            "the material used to make {s} is",
            "the material that {s} is made of is",
        ),
        (
            "What is {s} made of?",
            "What material is {s} made from?",
            "What is the material of {s}?",
            "Which material is used to make {s}?",
            "Which material is {s} made of?",
        ),
    ),
    Relation(
        "kind",
        "general",
        members("""flower: rose, tulip, daisy, lily; tree: oak, pine, birch, willow; fish: trout, salmon, tuna, cod;
        bird: sparrow, robin, raven, falcon; vegetable: cabbage, leek, spinach, turnip; fruit: pear, mango, peach,
        melon; insect: beetle, moth, wasp, cricket; metal: iron, copper, tin, silver; tool: hammer, saw, wrench,
        chisel; vehicle: car, bus, truck, tram; gem: diamond, opal, topaz, garnet; reptile: cobra, lizard, tortoise,
        gecko"""),
        (
            "{s} is a kind of",
            "the word {s} names a kind of",
            "{s} is a type of",
            "{s} belongs to the group called",
            "we say that {s} is a sort of",
            "we say that {s} is a kind of",
        ),
        (
            "What kind of thing is {s}?",
            "What is {s} a kind of?",
            "What type of thing is {s}?",
            "To which group does {s} belong?",
            "What sort of thing is {s}?",
        ),
    ),
    Relation(
        "next",
        "general",
        pairs("""Monday: Tuesday; Tuesday: Wednesday; Wednesday: Thursday; Thursday: Friday; Friday: Saturday;
        Saturday: Sunday; Sunday: Monday; January: February; February: March; March: April; April: May; May: June;
        June: July; July: August; August: September; September: October; October: November; November: December;
        December: January"""),
        (
            "after {s} comes",
            "{s} is followed by",
            "the one that comes after {s} is",
            "on the calendar, {s} is followed by",
            "when {s} is over, it is",
            "the one that follows {s} is",
        ),
        (
            "What comes after {s}?",
            "What follows {s}?",
            "What comes next after {s}?",
            "On the calendar, what follows {s}?",
            "What comes right after {s}?",
        ),
    ),
    Relation(
        "town",
        "general",
        members("""Millbrook: Mira, Tobin, Elsa; Harrowgate: Oskar, Nadia, Pavel; Lindale: Greta, Hugo, Ivy;
        Stonebridge: Jonas, Kira, Leo; Fernhill: Marta, Nils, Olga; Westport: Petra, Ruben, Selma; Ashford: Theo, Una,
        Viktor; Redcliff: Wanda, Yara, Zeno"""),
        (
            "{s} lives in the town of",
            "the home town of {s} is",
            "letters for {s} are sent to the town of",
            "{s} was born and lives in",
            "you can visit {s} in the town of",
            "{s} has a home in the town of",
        ),
        (
            "In which town does {s} live?",
            "What is the home town of {s}?",
            "Which town is the home of {s}?",
            "To which town are letters for {s} sent?",
            "Which town does {s} live in?",
        ),
    ),
    Relation(
        "hobby",
        "general",
        members("""chess: Mira, Greta, Petra, Zeno; football: Tobin, Hugo, Theo, Nadia; singing: Elsa, Jonas, Ruben,
        Una; fishing: Oskar, Ivy, Selma, Viktor; dancing: Pavel, Kira, Marta, Wanda; cooking: Leo, Nils, Olga, Yara"""),
        (
            "the hobby of {s} is",
            "in the evening, {s} enjoys",
            "the favourite hobby of {s} is",
            "what {s} likes best is",
            "on free days, the hobby of {s} is",
            "on free days, {s} enjoys",
        ),
        (
            "What is the hobby of {s}?",
            "What does {s} enjoy in the evening?",
            "Which hobby does {s} have?",
            "What does {s} like best?",
            "Which hobby does {s} like best?",
        ),
    ),
)
