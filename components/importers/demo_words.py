"""The words of the demo world: topics, their subtopics, and what titles are made of."""

TOPICS: dict[str, dict[str, str]] = {
    "cooking": {
        "pasta": "carbonara ravioli lasagna pesto gnocchi tagliatelle",
        "baking": "sourdough croissant brownie cheesecake focaccia macaron",
        "street_food": "taco kebab dumpling ramen falafel churro",
    },
    "fitness": {
        "yoga": "sunrise stretch balance breathing flexibility handstand",
        "strength": "deadlift squat kettlebell pushup barbell plank",
        "running": "marathon sprint trail interval sneakers pace",
    },
    "travel": {
        "beaches": "island lagoon surf sunset snorkel hammock",
        "mountains": "summit glacier hiking cabin ridge waterfall",
        "cities": "rooftop skyline metro market tokyo lisbon",
    },
    "pets": {
        "cats": "kitten whiskers purring catnip tabby scratching",
        "dogs": "puppy corgi fetch labrador leash tail",
        "birds": "parrot feathers budgie cockatoo singing nest",
    },
    "gaming": {
        "speedruns": "glitch worldrecord splits shortcut boss skip",
        "building": "redstone castle blueprint village sandbox tower",
        "shooters": "headshot clutch sniper squad respawn loadout",
    },
    "music": {
        "guitar": "riff acoustic chords fingerstyle solo strings",
        "piano": "nocturne ballad keys jazz improvisation chopin",
        "drums": "groove snare fill cymbal rhythm beat",
    },
    "beauty": {
        "makeup": "eyeliner lipstick contour palette blush foundation",
        "hair": "braid curls bangs fade balayage ponytail",
        "skincare": "serum sunscreen retinol cleanser glow moisturiser",
    },
    "cars": {
        "racing": "lap drift apex pitstop qualifying circuit",
        "restoration": "rust chassis paint vintage engine garage",
        "electric": "charging battery range autopilot torque charger",
    },
    "science": {
        "space": "rocket nebula saturn eclipse telescope astronaut",
        "chemistry": "reaction crystal flask acid flame magnesium",
        "robots": "gripper sensor servo drone arduino walking",
    },
    "crafts": {
        "woodwork": "dovetail lathe walnut workbench chisel epoxy",
        "knitting": "sweater yarn crochet scarf stitch mittens",
        "pottery": "glaze kiln wheel mug clay vase",
    },
    "comedy": {
        "pranks": "office roommate whoopee costume jumpscare reaction",
        "sketches": "boss landlord waiter dating airport interview",
        "standup": "punchline heckler crowd microphone storytime improv",
    },
    "gardening": {
        "vegetables": "tomato compost pumpkin seedling chilli greenhouse",
        "houseplants": "monstera orchid cactus repotting fern propagation",
        "flowers": "tulip rose dahlia pruning meadow bouquet",
    },
}

OPENINGS = (
    "How to get the perfect {0} every time",
    "{0} and {1} in 60 seconds",
    "I tried the {0} {1} challenge",
    "Nobody talks about {0} like this",
    "3 {0} mistakes you make with {1}",
    "POV: your first {0}",
    "{0} vs {1}: which one wins?",
    "My {0} routine, step by step",
    "Wait for the {0} at the end",
    "The easiest {0} you will ever see",
    "Day 30 of {0}: {1} and {2}",
    "Watch this before your next {0}",
)

TRENDS = ("fyp", "viral", "howto", "shorts", "daily", "satisfying")

# Titles of those who do not say what their video is about.
VAGUE = ("Wait for it", "You have to see this", "No words needed", "Part 2", "I still can't believe it", "Just watch")
