"""The colours of figures and of the page."""

# None of them is black or white, which SVG leaves out: the page finds each by its code and puts a
# variable of the light or the dark theme in its place.
INK, FAINT = "#1b1f24", "#9098a1"
# Okabe & Ito's colours, told apart with any kind of colour vision.
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#d55e00",
    "#cc79a7",
    "#56b4e9",
)
BROWN = "#8a6a3d"
