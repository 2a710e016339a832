"""A crew works in order, and gives up what does not end."""

import subprocess
import sys
import threading
import time

import pytest

from pipeline.decoding.crew import Crew, GivenUpError


def test_results_and_errors_come_back() -> None:
    with Crew(2, patience=60, name="test") as crew:
        tasks = [crew.submit(divmod, number, 3) for number in range(20)]
        assert [crew.result(task) for task in tasks] == [divmod(number, 3) for number in range(20)]
        with pytest.raises(ZeroDivisionError):
            crew.result(crew.submit(divmod, 1, 0))


def test_a_thread_that_hangs_is_replaced() -> None:
    release = threading.Event()
    with Crew(1, patience=0.2, name="test") as crew:
        hanging, other = crew.submit(release.wait), crew.submit(str, 5)
        with pytest.raises(GivenUpError):
            crew.result(hanging)
        assert crew.result(other) == "5"
        release.set()


def test_waiting_for_its_turn_is_not_counted() -> None:
    with Crew(1, patience=0.4, name="test") as crew:
        tasks = [crew.submit(time.sleep, 0.1) for _ in range(12)]
        crew.result(tasks[-1])  # after 1.2 seconds


def test_an_error_of_the_work_that_is_called_time_out_is_the_works() -> None:
    def fail() -> None:
        raise TimeoutError("of the network")

    with Crew(1, patience=60, name="test") as crew, pytest.raises(TimeoutError, match="of the network"):
        crew.result(crew.submit(fail))


def test_what_was_not_begun_is_dropped_at_the_end() -> None:
    done = list[int]()
    with Crew(1, patience=60, name="test") as crew:
        crew.submit(time.sleep, 0.2)
        for number in range(100):
            crew.submit(done.append, number)
    assert len(done) < 100


def test_no_thread_that_hangs_keeps_its_process_from_ending() -> None:
    program = (
        "import threading\nfrom pipeline.decoding.crew import Crew, GivenUpError\n"
        "with Crew(1, patience=0.2, name='x') as crew:\n"
        "    try: crew.result(crew.submit(threading.Event().wait))\n"
        "    except GivenUpError: print('given up')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "given up\n"
