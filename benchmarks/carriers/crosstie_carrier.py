"""crosstie: two processes that sweep, with no broker at all."""

from __future__ import annotations

from carriers.carrier import Carrier


class Crosstie(Carrier):
    """With a subscriber of one form."""

    def __init__(self, name: str, form: str, share: float) -> None:
        super().__init__()
        self.name, self._form, self.share = name, form, share

    def load(self, count: int) -> None:
        """Publish, as an application would."""
        from carriers import workload

        workload.publish(0, count)

    def start(self) -> None:
        """`crosstie sweep`, twice."""
        for _ in range(2):
            self.run("-m", "crosstie.workers", "sweep", "-i", "carriers.workload", CROSSTIE_BENCH_FORM=self._form)
