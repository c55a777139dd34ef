"""A declared saga over two databases, for the tests: a trip whose flight is in one and whose hotel is in the other."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.databases import Pair
from crosstie.orm import ActiveRecord, ConnectionManager
from crosstie.orm.field import IntegerPKMixin
from crosstie.sagas.declared import Saga, StepFailed, run_steps, step


class Flight(IntegerPKMixin, ActiveRecord):
    """Lives in `default`, where the runs are kept too."""

    __table_name__ = "flights"
    __connection__ = "default"

    id: int | None = None
    trip: str
    state: str = "booked"


class Room(IntegerPKMixin, ActiveRecord):
    """Lives in `secondary`."""

    __table_name__ = "rooms"
    __connection__ = "secondary"

    id: int | None = None
    trip: str
    state: str = "booked"


class BookTrip(Saga):
    """Flight and room, then the payment from which there is no way back, then the ticket."""

    __home__ = "default"

    trip: str
    flight_id: int | None = None
    room_id: int | None = None
    fails_at: str = ""
    trouble: int = 0
    paid: bool = False

    def _may_fail(self, where: str) -> None:
        if self.fails_at == where:
            raise StepFailed(f"no {where} to be had")

    @step
    def book_flight(self) -> None:
        """In home itself."""
        self.flight_id = Flight(trip=self.trip).save().id
        self._may_fail("flight")

    @book_flight.compensation
    def cancel_flight(self) -> None:
        """Kept, and marked."""
        assert self.flight_id is not None
        Flight.find(self.flight_id).update(state="cancelled")

    @step
    def book_room(self) -> None:
        """In the other database."""
        self.room_id = Room(trip=self.trip).save().id
        self._may_fail("room")

    @book_room.compensation
    def cancel_room(self) -> None:
        """Kept, and marked."""
        assert self.room_id is not None
        Room.find(self.room_id).update(state="cancelled")

    @step(pivot=True)
    def pay(self) -> None:
        """The way back ends here."""
        self._may_fail("money")
        self.paid = True

    @step
    def send_ticket(self) -> None:
        """Writes to both."""
        Flight(trip=self.trip, state="ticket").save()
        Room(trip=self.trip, state="voucher").save()


def create_trips() -> None:
    """Create the tables of both databases."""
    Flight.create_table()
    Room.create_table()


def rows(pair: Pair, trip: str = "t") -> list[str]:
    """The states of flights, then of rooms, in the order of their making."""
    flights = pair.first.rows("SELECT state FROM flights WHERE trip = %s ORDER BY id", (trip,))
    rooms = pair.second.rows("SELECT state FROM rooms WHERE trip = %s ORDER BY id", (trip,))
    return [state for (state,) in [*flights, *rooms]]


BOOKED = ["booked", "ticket", "booked", "voucher"]
CANCELLED = ["cancelled", "cancelled"]

if __name__ == "__main__":
    ConnectionManager.configure()
    run_steps("default", owner="child")
    sys.stdout.write("finished\n")
