"""The study: how well do finite-width predictions follow a real network's training?"""

from scripts.study.config import StudyConfig as StudyConfig
from scripts.study.results import read as read
from scripts.study.runner import execute as execute, prepare as prepare, run as run
