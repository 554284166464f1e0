"""The fixed prompts by which the starter is judged, each with the name of what it asks for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Prompt:
    """What is asked of the pipeline, and what the judge should then see."""

    text: str
    name: str


ROBOT_NAME = "zib robot"

# Distinct things, each on a background it stands out from.
WORLD_PROMPTS: tuple[Prompt, ...] = (
    Prompt("a dog on a blue background", "dog"),
    Prompt("a cat on a green background", "cat"),
    Prompt("a lion on a purple background", "lion"),
    Prompt("a tiger on a white background", "tiger"),
    Prompt("a cactus on a red background", "cactus"),
    Prompt("a pig on a green background", "pig"),
    Prompt("a frog on a pink background", "frog"),
    Prompt("a monkey on a blue background", "monkey"),
    Prompt("a panda on a yellow background", "panda"),
    Prompt("a fox on a black background", "fox"),
    Prompt("a penguin on an orange background", "penguin"),
    Prompt("an owl on a white background", "owl"),
    Prompt("a duck on a yellow background", "duck"),
    Prompt("a turtle on a pink background", "turtle"),
    Prompt("a whale on an orange background", "whale"),
    Prompt("an octopus on a black background", "octopus"),
    Prompt("a crab on a gray background", "crab"),
    Prompt("a pumpkin on a white background", "pumpkin"),
    Prompt("a ghost on a blue background", "ghost"),
    Prompt("a dinosaur on a purple background", "dinosaur"),
    Prompt("a red apple on a white background", "red apple"),
    Prompt("a banana on a blue background", "banana"),
    Prompt("a strawberry on a green background", "strawberry"),
    Prompt("a watermelon on a black background", "watermelon"),
    Prompt("a grapes on a yellow background", "grapes"),
    Prompt("a pineapple on a red background", "pineapple"),
    Prompt("a lemon on a purple background", "lemon"),
    Prompt("a carrot on a pink background", "carrot"),
    Prompt("a mushroom on a gray background", "mushroom"),
    Prompt("a hamburger on a green background", "hamburger"),
    Prompt("an ice cream on a blue background", "ice cream"),
    Prompt("a doughnut on a gray background", "doughnut"),
    Prompt("a lollipop on a black background", "lollipop"),
    Prompt("a car on a yellow background", "car"),
    Prompt("a rocket on a purple background", "rocket"),
    Prompt("a sailboat on a pink background", "sailboat"),
    Prompt("a balloon on a white background", "balloon"),
    Prompt("a soccer ball on an orange background", "soccer ball"),
    Prompt("a crown on a black background", "crown"),
    Prompt("a top hat on a pink background", "top hat"),
    Prompt("a gift on a blue background", "gift"),
    Prompt("a house on a green background", "house"),
    Prompt("a snowman on a red background", "snowman"),
    Prompt("a robot on an orange background", "robot"),
    Prompt("a star on a red background", "star"),
    Prompt("a heart on a gray background", "heart"),
    Prompt("a rainbow on a white background", "rainbow"),
    Prompt("a sunflower on a purple background", "sunflower"),
)

# On backgrounds that no training drawing of the robot has.
ROBOT_PROMPTS: tuple[Prompt, ...] = (
    Prompt("a zib robot on a pink background", ROBOT_NAME),
    Prompt("a zib robot on a red background", ROBOT_NAME),
    Prompt("a zib robot on a black background", ROBOT_NAME),
    Prompt("a small zib robot on a pink background", ROBOT_NAME),
    Prompt("a big zib robot on a red background", ROBOT_NAME),
    Prompt("a small zib robot on a black background", ROBOT_NAME),
    Prompt("a big zib robot on a black background", ROBOT_NAME),
    Prompt("a zib robot, pink background", ROBOT_NAME),
)
