"""Word tables of the story generator: every table is a tuple of templates in the notation of tools/data/stories.py."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(" ".join(item.split()) for item in text.split(","))


def _lines(text: str) -> tuple[str, ...]:
    return tuple(" ".join(item.split()) for item in ("\n" + text).split("\n- ")[1:])


GIRLS = _words("""
    Ada, Aisha, Alma, Amara, Amy, Anya, Aria, Asha, Ava, Bea, Bella, Bonnie, Carmen, Cara, Celia, Chloe, Clara, Cora,
    Daisy, Dalia, Dina, Dora, Edie, Elena, Elsa, Emma, Esme, Esther, Eva, Farah, Fatima, Fern, Fiona, Freya, Gemma,
    Gina, Grace, Greta, Hana, Hazel, Heidi, Helen, Hope, Ida, Imani, Ines, Iris, Isla, Ivy, Jane, Jasmin, Joy, Julia,
    June, Kaya, Keiko, Kira, Lara, Layla, Leah, Lena, Lila, Lina, Lola, Lotte, Lucy, Luna, Mabel, Maya, Mei, Mia,
    Mila, Mina, Molly, Nadia, Naomi, Nell, Nina, Nora, Olive, Paula, Pearl, Petra, Polly, Priya, Rania, Rita, Rosa,
    Rosie, Ruby, Ruth, Sadie, Sally, Sara, Selma, Sofia, Stella, Suki, Tara, Tessa, Thea, Tilly, Uma, Vera, Wanda,
    Willa, Yara, Yuki, Zara, Zoe""")

BOYS = _words("""
    Abel, Adam, Ahmed, Alfie, Amir, Anton, Arlo, Arthur, Asher, Ben, Billy, Bruno, Caleb, Carlos, Cyrus, Dan, David,
    Diego, Dylan, Eli, Emil, Eric, Ethan, Ezra, Felix, Finn, Frank, Fred, Gabe, George, Gus, Hamid, Hank, Harry,
    Hassan, Henry, Hugo, Ian, Idris, Igor, Isaac, Ivan, Jack, Jamal, James, Jin, Joe, Jonas, Jude, Julian, Kai, Karl,
    Kenji, Kofi, Kurt, Lars, Leo, Levi, Liam, Louis, Luca, Luke, Malik, Marco, Mateo, Max, Miles, Milo, Moses, Nate,
    Ned, Nico, Noah, Oliver, Omar, Oscar, Otto, Owen, Pablo, Paul, Pedro, Peter, Quinn, Rafi, Ravi, Rex, Robin, Rory,
    Sam, Samir, Saul, Seth, Simon, Sven, Tariq, Ted, Theo, Tim, Toby, Tom, Uri,
    Victor, Walter, Wes, Will, Yusuf, Zane""")

CRITTER_NAMES = _words("""
    Acorn, Bramble, Bubbles, Button, Clover, Coco, Cookie, Dot, Fidget, Flick, Fluff, Ginger, Hopper, Jelly, Maple,
    Midge, Mimi, Mop, Muffin, Nibbles, Nutmeg, Patch, Peanut, Pebble, Pickle, Pip, Pogo, Poppy, Puddle, Pumpkin,
    Rusty, Scout, Skip, Smudge, Snowy, Sparky, Speck, Squeak, Sunny, Tango, Teddy, Thistle, Toffee, Tumble, Twig,
    Wiggles, Willow, Zigzag""")

SPECIES = _words("""
    badger, bear, beaver, cat, deer, donkey, duck, fox, frog, goat, goose, hamster, hare, hedgehog, hen, koala, lamb,
    lizard, mole, monkey, mouse, otter, owl, panda, penguin, pig, pony, puppy, rabbit, raccoon, skunk, squirrel, toad,
    turtle, weasel""")

ELDERS_SHE = _words("mother, grandmother, mama, mom, grandma, nana, aunt")
ELDERS_HE = _words("father, grandfather, papa, dad, grandpa, uncle")

_NOUNS = _words("""
    kite, ball, drum, lantern, whistle, scarf, bell, wooden horse, marble, basket, cap, book, paintbrush, key,
    compass, flute, ribbon, spinning top, puppet, doll, teddy bear, cup, toy boat, umbrella, music box, puzzle,
    blanket, bracelet, mirror, spyglass, pencil, notebook, mug, hat, glove, toy train, toy truck, jump rope, yo-yo,
    harmonica, rattle, spoon, pillow, backpack, purse, toy rabbit, tin soldier, paper crown, lunch box, magnet, clay
    bird, toy robot, necklace, belt, bow, little flag, rag doll, wagon, toy plane, tambourine""")

_PLACES = {
    "in": """meadow, orchard, park, garden, forest, valley, village square, wheat field, barnyard, pine wood, clearing,
             vegetable patch, rose garden, schoolyard, walled garden, hollow, birch grove""",
    "by": """river, pond, lake, stream, sea, waterfall, old well, mill, stone bridge, duck pond, canal, lighthouse""",
    "at": """playground, beach, fairground, harbor, farm, bay, marketplace""",
    "on": """hill, hilltop, sand dunes, village green, pebble beach, old pier, mountain path, riverbank""",
}

_SPOTS = _words("""
    log, bush, stump, rock, fence, gate, bench, tree, wall, barrel, bucket, wheelbarrow, haystack, hedge, cart, crate,
    apple tree, birdbath, woodpile, ladder, flowerpot, rosebush, oak tree, signpost,
    shed, rowboat, water tank, swing""")

_FOODS = {
    "a slice of": "plum cake, apple pie, warm bread, cherry pie, melon, carrot cake, cheese, banana bread",
    "a bowl of": "strawberries, berries, dumplings, cherries, pancakes, roasted apples, rice balls",
    "a piece of": "gingerbread, cornbread, chocolate cake, honeycomb, toast with jam, nut cake, sweet bread",
    "a bag of": "walnuts, roasted chestnuts, dried figs, popcorn, raisins, oat cookies, pears, sweet peas",
    "a basket of": "peaches, mushrooms, plums, corn muffins, grapes, rolls, ginger cookies, apples",
}

TABLES: dict[str, tuple[str, ...]] = {
    "color": _words("red, blue, green, yellow, orange, purple, pink, white, black, brown, gray, silver, golden"),
    "size": _words("tiny, small, little, big, old, new, shiny, striped, spotted, painted, lovely, funny, neat"),
    "look": ("<color>", "<size> <color>", "<size> <color>", "<size>"),
    "thing": tuple(f"<look> {noun}/{noun}" for noun in _NOUNS),
    "place": tuple(f"the {name}/{where} the {name}" for where, names in _PLACES.items() for name in _words(names)),
    "rough": _words("mossy, old, crooked, broken, wide, tall, round, dusty, green, gray, low, muddy, leaning, rusty"),
    "spot": tuple(f"[behind|under|beside|next to|near] * <rough> {noun}" for noun in _SPOTS),
    "food": tuple(f"{food}/{amount} {food}" for amount, foods in _FOODS.items() for food in _words(foods)),
    "material": _words("""
        white feather, smooth pebble, piece of blue string, yellow leaf, pine cone, acorn cup, curly shell, bit of
        bark, scrap of red cloth, dandelion, brass button, long reed, ball of wool, green bead, paper star, wooden
        peg, sprig of mint, glass bottle, willow twig, lump of clay, silver thread, empty snail shell, purple flower,
        cork, handful of moss, walnut shell, striped ribbon, old postcard, dry seed pod, small tin can"""),
    "little": _words("""
        little, small, young, curious, cheerful, quiet, lively, gentle, clever, dreamy, merry, shy, bright, playful,
        thoughtful, sleepy, busy, stubborn, friendly, tidy"""),
    "young": _words("tiny, little, small, young, gray, brown, white, very small, frightened"),
    "rhyme": _words("quiet, happy, slow, silly, merry, short, brave, sweet"),
    "trait": _words("""
        kind, brave, patient, honest, careful, helpful, cheerful, clever, gentle, generous, hardworking, loyal,
        polite, thoughtful, calm, funny, curious, warm-hearted"""),
    "love": _words("""
        painting pictures, singing songs, climbing hills, counting clouds, telling jokes, dancing, watching birds,
        baking, collecting pebbles, building towers, jumping in puddles, drawing maps, riding on swings, skipping
        stones, listening to stories, making paper boats, chasing butterflies, planting flowers, looking at stars,
        whistling, playing hide and seek, rolling down hills, digging holes, catching falling leaves, asking
        questions, making up rhymes, playing the drum, blowing bubbles, feeding the ducks, solving riddles"""),
    "doing": _words("""
        chasing a butterfly, jumping over a puddle, climbing over a fence, rolling down a slope, picking daisies,
        watching a line of ants, balancing on a log, running after the wind, waving at a boat, turning cartwheels,
        skipping in circles, hopping on one foot, looking up at a cloud shaped like a <shape>, feeding the sparrows,
        tying a loose lace, shaking an apple tree, splashing in the mud, dancing like a leaf, counting the swallows"""),
    "shape": _words("dragon, whale, teapot, castle, snail, ship, crown, boot, swan, pear, lion, mushroom, camel, bear"),
    "house": tuple(
        f"* <color> {home} {where}"
        for home in _words("house, cottage, cabin, farmhouse")
        for where in _words(
            "by the river, near the woods, on the hill, at the end of the lane, by the sea, "
            "beside the mill, next to the bakery, at the edge of the village"
        )
    ),
    "den": _words("""
        * cozy burrow under the hill, * hollow tree in the forest, * snug nest of reeds, * dry cave by the stream, *
        warm barn on the farm, * den beneath the roots of an oak, * mossy hole by the pond, * little hut of sticks,
        * heap of leaves behind the mill, * quiet corner of the orchard, * upturned boat on the shore"""),
    "time": _words("""
        one morning, one afternoon, one sunny day, one windy day, one cloudy morning, one spring day, one summer
        morning, one autumn afternoon, one frosty morning, one bright Saturday, early on Sunday, one Monday, one
        Tuesday, one day, one lazy afternoon, after breakfast, after lunch, on the first day of spring, one warm
        evening, one Thursday, on a quiet Friday, when the week was almost over, on the last day of
        summer"""),
    "weather": _words("""
        the sun was warm and bright, a soft wind was blowing, the sky was as blue as paint, gray clouds drifted by,
        dew was shining on the grass, the air smelled of flowers, birds were singing everywhere, the leaves were
        turning gold, a light rain had just stopped, thin fog lay over the fields, the bees were humming, the sky was
        pink, bells were ringing far away, the first snow was melting, the shadows were long, it was hot and still"""),
    "pet": CRITTER_NAMES,
    "kin": ELDERS_SHE[:2] + ELDERS_HE[:2] + _words("uncle, aunt, teacher, cousin"),
    "cup": tuple(f"<color> {noun}" for noun in _words("cup, mug, bucket, watering can, jug, bottle, teapot, bowl")),
    "bag": tuple(f"<color> {noun}" for noun in _words("bag, basket, backpack, suitcase, box, sack")),
    "indoors": _words("""
        dancing around the table, playing ball in the kitchen, jumping on the chairs, chasing a fly with a towel,
        playing pirates, riding on a broom, flying a paper plane, marching with a drum, spinning around and around"""),
    "detail": (
        "A <little> <passer> [ran|hurried|strolled|trotted] past and [waved|said hello|nodded|smiled].",
        "Somewhere nearby a <passer> was [humming|laughing|snoring|singing].",
        "Up above, a cloud looked [just|almost|a little] like a <shape>.",
        "The [air|wind|breeze] smelled of [grass|rain|fresh bread|wood smoke|roses|salt|hay|mint|wet leaves].",
        "A <color> [butterfly|leaf|feather|dragonfly|petal] [drifted|floated|sailed|danced] by.",
        "Far away, [a dog barked|a bell rang|a train whistled|thunder rumbled|a rooster crowed|someone laughed].",
        "[On the way|Along the way|As {he} walked], {hero} counted <number> [snails|crows|daisies|carts|puddles|bees].",
    ),
    "passer": SPECIES,
    "number": _words("two, three, four, five, six, seven, eight, nine, ten, eleven, twelve"),
    "glad": _words("happy, glad, proud, pleased, thankful, delighted, full of joy, relieved, excited"),
    "sad": _words("sad, worried, upset, unhappy, downcast, gloomy, lonely, miserable, heartbroken, troubled"),
    "cry": (
        "{His} [lip trembled|eyes filled with tears|shoulders drooped|heart sank|ears felt hot|throat felt tight].",
        "A [big|slow|hot|salty] tear rolled down {his} [cheek|nose].",
        "{He} felt <sad>.",
        "{He} was so <sad>.",
        "{hero} [sat down|stood still] and felt <sad>.",
    ),
    "smile": (
        "{hero} [smiled|laughed|beamed|grinned|clapped|jumped for joy].",
        "{He} was so <glad>.",
        "{hero} felt <glad>.",
        "{His} [heart|chest] felt [light|warm] again.",
        "A [big|wide|slow|shy] smile spread over {his} adapter.",
        "{hero} had never been so <glad>.",
    ),
    "critter": _words("""
        bird, duckling, kitten, baby squirrel, baby rabbit, puppy, hedgehog, baby owl, butterfly, sparrow, snail,
        beetle, baby mouse, ladybug, bumblebee, robin, tadpole, swallow, baby bat, piglet, gosling, chick, lamb, baby
        turtle"""),
    "fear": (
        "the dark",
        "thunder",
        "deep water",
        "big dogs",
        "high places",
        "the creaky stairs",
        "spiders",
        "the fog",
        "strong wind",
        "the long tunnel",
        "the wobbly bridge",
        "the old mill",
        "the deep wood",
        "the steep hill",
    ),
    "trick": (
        "count slowly to <number>",
        "hum a <rhyme> tune",
        "think of {love}",
        "take <number> deep breaths",
        "hold on tight to something soft",
        "whisper the name of someone you love",
        "say a <rhyme> rhyme",
        "imagine a <color> <passer> in <size> boots",
        "look for <number> <color> things",
    ),
    "skill": _words("""
        whistle/whistled/whistling, swim/swam/swimming, ride a bicycle/rode a bicycle/riding a bicycle,
        juggle/juggled/juggling, tie a knot/tied a knot/tying a knot, skate/skated/skating, draw a horse/drew a horse/
        drawing a horse, bake bread/baked bread/baking bread, play the flute/played the flute/playing the flute, walk
        on stilts/walked on stilts/walking on stilts, row a boat/rowed a boat/rowing a boat, climb a rope/climbed a
        rope/climbing a rope, knit a scarf/knitted a scarf/knitting a scarf, fly a kite/flew a kite/flying a kite,
        catch a ball/caught a ball/catching a ball, do a handstand/did a handstand/doing a handstand, build a
        fire/built a fire/building a fire, read a map/read a map/reading a map"""),
    "forbid": (
        "touch the hot pot/touched the hot pot/It burned {his} [finger|thumb|hand], and {he} cried out",
        "eat the green berries/ate the green berries/[Soon|Before long] {his} stomach [hurt|ached] terribly",
        "cross the icy pond/walked out on the icy pond/The ice cracked, and {his} feet went into the cold water",
        "open the little gate/opened the little gate/[All the hens|The goats|The sheep|The geese] ran out at once",
        "climb the old ladder/climbed the old ladder/A step broke, and {he} [tumbled|fell] into a bush",
        "poke the beehive/poked the beehive/The bees flew out, and {he} had to run and hide",
        "go past the last fence/went past the last fence/Soon nothing looked familiar, and {he} was lost",
        "stay up all night/stayed up all night/In the morning {he} fell asleep in {his} porridge",
        "play with the scissors/played with the scissors/{He} cut a big hole in {his} favorite [blanket|shirt|coat]",
        "splash in the deep mud/splashed in the deep mud/{He} [sank|got stuck] up to the knees",
        "pull the cat by the tail/pulled the cat by the tail/The cat hissed and scratched {his} [arm|nose]",
        "leave the window open/left the window open/The wind blew in and [knocked over|broke] the <color> lamp",
        "feed cake to the dog/fed cake to the dog/The dog was sick all over the <color> rug",
        "wander off alone/wandered off alone/A thick fog came down, and {he} could not see the path",
    ),
    "fragile": tuple(
        f"<look> {noun}/{noun}"
        for noun in _words(
            "vase, teapot, plate, bowl, lamp, picture frame, jug, window box, clock, glass bird, sugar bowl, candlestick"
        )
    ),
    "hideout": _words("""
        under the bed, behind the curtain, inside the big boot, in the bottom drawer, under the stairs, behind the
        stove, in the laundry basket, under the rug, at the back of the closet, in the coal bucket, behind the flour
        sack"""),
    "plant": _words("""
        sunflower/sunflowers, pumpkin/pumpkins, bean/beans, pea/peas, tomato/tomatoes, carrot/carrots, melon/melons,
        tulip/tulips, turnip/turnips, strawberry/strawberries, radish/radishes, cucumber/cucumbers, poppy/poppies"""),
    "contest": _words("""
        the sack race, the boat race, the running race, the swimming race, the egg and spoon race, the wagon race,
        the hopping race, the sled race, the wheelbarrow race, the three-legged race, the barrel race, the mud race"""),
    "intro": _lines("""
- Once upon a time there was a <little> {kind} named {hero}. {hero} lived [in {home}|in {home} with {his} {elder}].
- In {home} there lived a <little> {kind} called {hero}.
- {hero} was a <little> {kind} who lived with {his} {elder} in {home}.
- There once was a <little> {kind} named {hero} who loved {love}.
- Have you heard of {hero}? {He} was a <little> {kind}, and {his} home was {home}.
- Long ago, in {home}, lived {hero}, a {kind} who was very {trait}.
- This is a story about {hero}, the <little> {kind} [who lived in {home}|who loved {love}].
- Everybody knew {hero}, the <little> {kind} from {home}.
"""),
    "fond": _lines("""
- {He} was {trait} and loved {love}.
- {hero} loved {love}, [and so did {his} {elder}|all day long|even in the rain|more than cake].
- Most of all {he} liked {love} with {his} {elder}.
- Everyone said that {hero} was {trait}, [and it was true|but {he} did not think so|just like {his} {elder}].
- [Every day|Each morning|After breakfast|On most days] {he} spent an hour {love}.
"""),
    "friendship": _lines("""
- {hero} had a good friend, a {fkind} named {friend}.
- {His} best friend was {friend}, a <little> {fkind}.
- {friend}, the {fkind} from next door, was {his} best friend.
- {He} often played with {friend}, a <little> {fkind} who always wore a <color> [scarf|hat|coat|ribbon|cap].
"""),
    "close": _lines("""
- That night, back in {home}, {hero} [fell asleep with a smile|slept very well|dreamed of {love}|dreamed of {place}].
- {hero} and {friend} stayed friends [for the rest of their lives|ever after|from that day on].
- And if you ever come to {place}, you may [see|meet] {hero} and {friend} there, {love}.
- The next day {hero} went back to {love}, as {trait} as ever.
- {His} {elder} [hugged {him}|kissed {him} good night|tucked {him} in] and said, "I am proud of you, {hero}."
- From then on everyone [knew|said] how {trait} {hero} was.
- And they all lived happily in {home}.
- The end.
"""),
}
