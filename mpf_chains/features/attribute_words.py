"""Words by which English texts tell gender and race: proxies, from no register of persons."""

from __future__ import annotations

from collections.abc import Mapping

_WOMEN = """
    abigail aisha alice alicia alison amanda amelia amy ana andrea angela anita anna anne annie aria ava barbara
    beatrice bella beth betty brenda camila carla carmen caroline catherine cecilia charlotte chloe christina claire
    clara claudia cynthia daniela daphne deborah debra denise diana diane dolores donna doris dorothy edith elaine
    eleanor elena elisa elise elizabeth ella ellen elsa emilia emily emma erica erin esther eva evelyn fatima fiona
    gabriela gabriella gloria hannah harriet heather heidi helen helena ingrid irene isabel isabella jacqueline jane
    janet janice jennifer jenny jessica joanna josephine joyce juanita judith judy julia juliana julie karen kate
    katherine kathleen kathryn katie kayla kimberly kristen laura lauren leah leila lena leticia linda lisa liz louise
    lucia lucy lucía lydia lynn maggie mara margaret maria mariana marie marilyn marisol marjorie marta martha mary
    maría matilda maya megan mei melanie melissa mia michelle mildred miriam molly monica nadia nancy naomi natalia
    natalie natasha nicole nina nora norma olga olivia pamela patricia paula penelope phoebe priya rachel rebecca rita
    rosa ruth sally samantha sandra sara sarah shannon sharon sheila shirley sofia sofía sonia sophia sophie stella
    stephanie susan susie suzanne sylvia tamara tanya tara teresa theresa tina tracy valentina valerie vanessa vera
    veronica vivian wendy yasmin yolanda yvonne zoe
"""
_MEN = """
    aaron abraham adam adrian ahmed alan albert alberto alejandro alexander alfred andre andrew andrés angelo anthony
    antonio arjun arnold arthur barry ben benjamin bernard bob bobby brad bradley brandon brendan brian bruce bruno
    calvin carl carlos cedric charles chris christopher clarence clifford connor craig curtis cyril damian dan daniel
    darren dave david dennis derek diego dmitri dominic donald doug douglas duncan dylan eddie edgar edmund eduardo
    edward edwin eli elias elijah emilio emmanuel enrique eric ernest ethan eugene evan felix fernando finn francisco
    franklin fred frederick gabriel gareth gary gavin geoffrey george gerald gilbert giovanni glenn gordon graham greg
    gregory gustavo hamza hans harold harry harvey hassan hector henry herbert howard hugh hugo ian ibrahim isaac ivan
    jake jamal james jason javier jeff jeffrey jeremy jerome jerry jim jimmy joe joel johann john johnny jonathan
    jorge jose joseph joshua josé juan julian kareem karl keith kenneth kevin kyle larry lawrence leo leon leonard
    leonardo leroy liam louis luca lucas luis luke malcolm malik manuel marcel marco marcus mario martin marvin matteo
    matthew maurice mauricio michael miguel mike mohamed mohammed muhammad nathan nathaniel neil nicholas nigel noah
    norman oliver omar oscar otto pablo patrick paul pedro peter phil philip phillip rafael raj ralph ramon randy raul
    raymond reginald ricardo richard rick robert roberto rodney roger roland ron ronald roy russell ryan salvador
    samuel scott sean sebastian sergei sergio seth shawn simon stanley stephen steve steven stuart ted terrence theo
    theodore thomas tim timothy tobias tom tommy tony trevor tyler vernon victor vincent vladimir walter warren wayne
    william winston xavier yusuf zachary
"""

FIRST_NAMES: tuple[frozenset[str], frozenset[str]] = (frozenset(_WOMEN.split()), frozenset(_MEN.split()))
"""First names mostly given to women (first) or to men (second), in English texts above all. A modest list of our own:
names that are common for both, or common words or places ("Grace", "Mark", "Alex", "Florence"), are left out."""

RACE: Mapping[str, tuple[str, ...]] = {
    "white": ("caucasian", "caucasians", "european american", "european-american", "european"),
    "black": (
        "african american", "african-american", "african americans", "african-americans", "afro-american", "african",
    ),
    "asian": (
        "asian", "asians", "asian american", "asian-american", "asian americans", "east asian", "south asian",
        "southeast asian", "chinese", "japanese", "korean", "vietnamese", "filipino", "filipina",
    ),
    "hispanic": (
        "hispanic", "hispanics", "latino", "latina", "latinos", "latinas", "latinx", "latine", "chicano", "chicana",
        "mexican", "mexican american", "mexican-american",
    ),
    "indigenous": (
        "indigenous", "native american", "native-american", "native americans", "american indian", "alaska native",
        "first nations", "aboriginal", "navajo", "cherokee",
    ),
}  # fmt: skip
"""Words for a person's race or ethnicity by class; those that are colours, too, are in `COLOURS`."""

COLOURS: Mapping[str, tuple[str, ...]] = {"white": ("white", "whites"), "black": ("black", "blacks")}
"""Classes whose name says nothing of persons by itself."""

PERSONS = (
    "man", "men", "woman", "women", "person", "people", "male", "female", "boy", "girl", "lady", "guy", "gentleman",
    "american", "americans",
)  # fmt: skip
"""What a colour stands before where it is said of persons."""
