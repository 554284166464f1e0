"""Common English words the tokenizer should keep whole, although the starter never saw them in a caption."""

from __future__ import annotations

_WORDS = """
    the and or of in at with without near by over under behind above below between from to for is are was has
    it its this that these those one two three four five six seven eight nine ten many few some no not very
    red orange yellow green blue purple pink brown black white gray grey golden gold silver violet cyan teal
    turquoise magenta beige cream navy maroon lime dark light bright pale deep soft colour color coloured
    colored colourful colorful plain simple
    small big large little tiny huge giant tall short long wide narrow thin thick fat round square flat
    left right top bottom middle centre center side front back corner edge close far high low
    picture photo photograph image drawing painting sketch illustration cartoon icon emoji sticker logo
    portrait poster art artwork style pixel vector watercolor oil pencil digital render rendering
    masterpiece detailed quality best worst good bad ugly beautiful pretty cute funny happy sad angry smiling
    sleepy old new young clean dirty shiny smooth fuzzy fluffy soft hard wooden metal glass paper plastic
    man woman boy girl child baby person people face eye eyes nose mouth ear ears hair head hand hands
    arm arms leg legs foot feet body tail wing wings antenna wearing holding sitting standing
    running flying jumping swimming sleeping eating looking walking waving playing dancing raised up down
    toy doll figure character creature monster dragon wizard knight princess king queen pirate hero
    house home room kitchen garden street city town village road bridge tower building door window wall roof
    table chair bed lamp clock cup bowl plate bottle box bag hat shirt dress shoe shoes coat
    sky sun moon star cloud clouds rain snow wind storm sea ocean lake river beach island mountain hill
    forest field grass tree leaf flower plant rock stone sand water fire ice
    day night morning evening summer winter spring autumn sunset sunrise
    animal bird fish bear wolf deer sheep goat donkey puppy kitten hamster insect spider
    bread cake pie soup salad rice egg milk juice coffee tea sugar candy chocolate fruit vegetable
    train boat ship plane truck van motorcycle wheel engine
    my your his her our their subject named called sks background foreground scene view shot pattern texture
    number letter text word sign line shape circle triangle star heart
"""

COMMON_WORDS: tuple[str, ...] = tuple(_WORDS.split())
