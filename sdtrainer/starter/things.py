"""The hand-picked things of the starter's world: plain English names and the emoji that show them."""

from __future__ import annotations

_ANIMALS: dict[str, str] = {
    "dog": "\U0001f436",
    "cat": "\U0001f431",
    "lion": "\U0001f981",
    "tiger": "\U0001f42f",
    "cow": "\U0001f42e",
    "pig": "\U0001f437",
    "frog": "\U0001f438",
    "monkey": "\U0001f435",
    "panda": "\U0001f43c",
    "fox": "\U0001f98a",
    "penguin": "\U0001f427",
    "owl": "\U0001f989",
    "duck": "\U0001f986",
    "turtle": "\U0001f422",
    "whale": "\U0001f433",
    "octopus": "\U0001f419",
    "crab": "\U0001f980",
    "butterfly": "\U0001f98b",
    "ladybug": "\U0001f41e",
    "dinosaur": "\U0001f995",
}

_FOOD = {
    "red apple": "\U0001f34e",
    "banana": "\U0001f34c",
    "strawberry": "\U0001f353",
    "watermelon": "\U0001f349",
    "grapes": "\U0001f347",
    "pineapple": "\U0001f34d",
    "lemon": "\U0001f34b",
    "cherries": "\U0001f352",
    "carrot": "\U0001f955",
    "broccoli": "\U0001f966",
    "avocado": "\U0001f951",
    "mushroom": "\U0001f344",
    "pizza": "\U0001f355",
    "hamburger": "\U0001f354",
    "ice cream": "\U0001f366",
    "doughnut": "\U0001f369",
    "fried egg": "\U0001f373",
    "lollipop": "\U0001f36d",
}

_VEHICLES = {
    "car": "\U0001f697",
    "rocket": "\U0001f680",
    "sailboat": "\u26f5",
    "flying saucer": "\U0001f6f8",
}

_OBJECTS = {
    "balloon": "\U0001f388",
    "soccer ball": "\u26bd",
    "basketball": "\U0001f3c0",
    "drum": "\U0001f941",
    "crown": "\U0001f451",
    "top hat": "\U0001f3a9",
    "light bulb": "\U0001f4a1",
    "alarm clock": "\u23f0",
    "gift": "\U0001f381",
    "gem": "\U0001f48e",
    "house": "\U0001f3e0",
    "snowman": "\u26c4",
    "robot": "\U0001f916",
    "pumpkin": "\U0001f383",
}

_SKY_AND_PLANTS = {
    "star": "\u2b50",
    "heart": "\u2764",
    "rainbow": "\U0001f308",
    "crescent moon": "\U0001f319",
    "flame": "\U0001f525",
    "sunflower": "\U0001f33b",
    "rose": "\U0001f339",
    "cactus": "\U0001f335",
    "pine tree": "\U0001f332",
    "four leaf clover": "\U0001f340",
}

_FACES = {
    "smiling face": "\U0001f600",
    "alien": "\U0001f47d",
    "skull": "\U0001f480",
    "clown": "\U0001f921",
    "ghost": "\U0001f47b",
}

THINGS: dict[str, str] = _ANIMALS | _FOOD | _VEHICLES | _OBJECTS | _SKY_AND_PLANTS | _FACES

# Mirrored, these would be wrong (a clock face) or lose what tells them apart.
KEEPS_ITS_SIDE = frozenset({"alarm clock", "crescent moon"})
