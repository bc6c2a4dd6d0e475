"""Keeps drafting from losing more than a few per cent against plain rounds, by the times of the rounds themselves."""

from collections import deque
from dataclasses import dataclass
from itertools import islice

from .base import Account

# A plain round is measured after the first drafted one, unless drafted ones make SURE_GAIN tokens each, which is more
# than a verification could cost; and again when the text has grown by half, and by at least GROWTH tokens.
SURE_GAIN, GROWTH = 4.0, 256

# What drafting may lose at once; later credit as for goodput.
CREDIT_AT_FIRST = 2.0

# What else runs on the machine adds to a round's time, for a moment or for a while. So a kind of round is judged by
# the newest RECENT of its kind; as long as drafting has not won, it is compared with COMPARED plain rounds, one beside
# each drafted round, and a few rounds draft whatever those before have lost, after LOOKS plain ones. The last OPEN
# rounds are judged anew when more is known of what rounds take.
RECENT, COMPARED, OPEN, LOOKS = 9, 3, 16, (0, 8, 24)
LONGEST_OUTLIER = 2.0  # in times of an undisturbed round: longer ones were disturbed


class Pace:
    """The seconds of the newest rounds of a kind."""

    def __init__(self) -> None:
        self._newest: deque[float] = deque(maxlen=RECENT)

    def __len__(self) -> int:
        return len(self._newest)

    def add(self, seconds: float) -> None:
        self._newest.append(seconds)

    def forget(self) -> None:
        self._newest.clear()

    @property
    def undisturbed(self) -> float:
        """What a round takes: the first quartile, since disturbances only add."""
        return sorted(self._newest)[(len(self._newest) - 1) // 4] if self._newest else 0.0

    def cut(self, seconds: float) -> float:
        """A round's seconds without what was probably a disturbance."""
        return min(seconds, LONGEST_OUTLIER * self.undisturbed) if self._newest else seconds

    @property
    def mean(self) -> float:
        """Of the newest, without disturbances."""
        return sum(map(self.cut, self._newest)) / max(len(self._newest), 1)

    @property
    def longest(self) -> float:
        """The longest of the newest, without disturbances."""
        return max(map(self.cut, self._newest), default=0.0)


@dataclass
class DraftedRound:
    """tokens: that it made. drafting, rest: its seconds. beside: seconds of the next plain round, or of the one right
    before it if that was faster; 0 without one. number: of the round."""

    tokens: float
    drafting: float
    rest: float
    beside: float
    number: int


class Bound:
    """The account of `length_policy="goodput"`, fed by the rounds themselves instead of a measurement before them.

    Drafting stops when the account no longer holds what a round may lose, and goes on when plain rounds have filled
    it. A drafted round is held against the plain rounds beside it and against those of late, whichever are slower: a
    machine that is busy for a while slows down both.
    """

    def __init__(self) -> None:
        self.account = Account(CREDIT_AT_FIRST)
        self._plain, self._drafting, self._rest = Pace(), Pace(), Pace()
        self._open: deque[DraftedRound] = deque()
        self._number = 0  # of the round
        self._num_rounds = 0  # those that drafted
        self._num_tokens = 0.0  # and what they made
        self._since_plain = 0  # those of them after the last plain round
        self._last_plain = 0.0  # seconds
        self._last_drafted = 0  # number of the round
        self._length = self._length_at_probe = 0  # tokens of the text, now and when a plain round was last measured

    @property
    def balance(self) -> float:
        """What drafting may lose, by all that is known now."""
        return self.account.balance + sum(each.tokens - self._cost(each) for each in self._open)

    def allows(self, num_tokens: int) -> bool:
        """Whether to draft after a text of `num_tokens` tokens."""
        self._length = max(self._length, num_tokens)  # of a batch the longest
        if self._num_tokens >= SURE_GAIN * self._num_rounds:  # the first draft, too
            return True
        probed = self._length_at_probe
        if not probed or self._length >= probed + max(probed // 2, GROWTH):
            return False
        balance = self.balance
        is_compared = len(self._plain) >= COMPARED and self._since_plain <= OPEN
        if self._since_plain and balance < CREDIT_AT_FIRST and not is_compared:
            return False
        return balance >= self._stake or self._is_look_due()

    def _is_look_due(self) -> bool:
        """Whether too little was drafted to end it: the first rounds may have met a busy moment."""
        num_waits = self._num_rounds - 1
        return num_waits < len(LOOKS) and self._number - self._last_drafted > LOOKS[num_waits]

    def add(self, drafting: float, rest: float, tokens: float, reads_prompt: bool) -> None:
        """A round: its seconds, and the tokens that it made per sequence. The rest of a round that reads the prompt is
        not counted, nor is a token: plain decoding reads it, too."""
        self._number += 1
        if drafting:
            self._add_drafted(drafting, rest, tokens, reads_prompt)
        elif not reads_prompt:
            self._add_plain(rest)
        while self._open and self._open[0].number <= self._number - OPEN and self._plain:
            settled = self._open.popleft()
            self.account.book(settled.tokens, self._cost(settled), has_drafted=True)

    def _add_drafted(self, drafting: float, rest: float, tokens: float, reads_prompt: bool) -> None:
        self._num_rounds += 1
        self._num_tokens += tokens
        if reads_prompt:
            tokens, rest = tokens - 1, 0.0
        else:
            self._drafting.add(drafting)
            self._rest.add(rest)
        beside = 0.0 if self._since_plain else self._last_plain
        self._since_plain += 1
        self._last_drafted = self._number
        self._open.append(DraftedRound(tokens, drafting, rest, beside, self._number))

    def _add_plain(self, seconds: float) -> None:
        if self._since_plain > OPEN:  # the machine, or the text's length, may be another one by now
            self._plain.forget()
        self._plain.add(seconds)
        for drafted in islice(reversed(self._open), self._since_plain):
            drafted.beside = min(drafted.beside or seconds, seconds)
        self._since_plain, self._last_plain = 0, seconds
        self._length_at_probe = self._length
        self.account.book(1.0, 1.0, has_drafted=False)

    def _cost(self, drafted: DraftedRound) -> float:
        """A round's time in plain rounds; nothing before the first of these."""
        plain = self._plain_seconds
        if not plain:
            return 0.0
        seconds = self._drafting.cut(drafted.drafting) + self._rest.cut(drafted.rest)
        return seconds / max(plain, drafted.beside)

    @property
    def _plain_seconds(self) -> float:
        """What a plain round takes: no longer than one that verifies a draft."""
        return min(self._plain.undisturbed, self._rest.undisturbed or self._plain.undisturbed)

    @property
    def _stake(self) -> float:
        """What the next draft may lose."""
        return (self._drafting.longest + self._rest.longest) / self._plain_seconds - 1
