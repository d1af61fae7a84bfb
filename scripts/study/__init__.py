"""The study: how well do finite-width predictions follow a real network's training?"""

from scripts.study.config import StudyConfig as StudyConfig
from scripts.study.run import run as run
