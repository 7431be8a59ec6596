"""Trying again after failures that may pass."""

import logging
import random
import time

from data_pipelines.errors import UserError

_FIRST_WAIT_SECONDS = 0.25
_LONGEST_WAIT_SECONDS = 30.0

_logger = logging.getLogger("data_pipelines")
# Its own stream: the global one belongs to whoever seeds it.
_random = random.Random()


class TransientError(Exception):
    """Something failed that may work in a moment.

    Attributes:
        retry_after: Seconds the other side asks to wait; 0 when it does not say.
    """

    def __init__(self, what: str, *, retry_after: float = 0.0) -> None:
        """Says what failed.

        Args:
            what: For the message.
            retry_after: See the class.
        """
        super().__init__(what)
        self.retry_after = retry_after


class Retries:
    """Counts the failures in a row of one task, and waits longer after each.

    The waits are drawn at random from the upper half of what is allowed, so that many processes
    that failed together do not all come back together.
    """

    def __init__(self, num_retries: int, *, where: str) -> None:
        """Starts at no failures.

        Args:
            num_retries: How many failures in a row are borne.
            where: What is read, for messages.
        """
        self._num_retries = num_retries
        self._where = where
        self._num_failures = 0

    def wait_after(self, error: TransientError) -> None:
        """Counts a failure and waits.

        Raises:
            UserError: There were too many.
        """
        self._num_failures += 1
        if self._num_failures > self._num_retries:
            raise UserError(
                f"{self._where}: cannot be read, tried {self._num_failures} times: {error}"
            ) from error
        longest = _FIRST_WAIT_SECONDS * 2 ** (self._num_failures - 1)
        longest = min(max(longest, error.retry_after), _LONGEST_WAIT_SECONDS)
        seconds = longest * _random.uniform(0.5, 1.0)
        _logger.warning("%s: %s; trying again in %.1f s", self._where, error, seconds)
        time.sleep(seconds)

    def succeeded(self) -> None:
        """Forgets earlier failures."""
        self._num_failures = 0
