"""Archives from their sources to data/<name>/: several at once, resumed, checked, renamed when whole and right."""

from finetune.fetch.bring import fetch
from finetune.fetch.download import Patience
from finetune.fetch.wanted import Wanted, bring_from, wanted

__all__ = ["Patience", "Wanted", "bring_from", "fetch", "wanted"]
