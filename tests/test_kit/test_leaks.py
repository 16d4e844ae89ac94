from __future__ import annotations

LEAKY = '''
import asyncio, subprocess, sys, threading

stop = threading.Event()

def test_thread():
    """d"""
    threading.Thread(target=stop.wait, name="forgotten", daemon=True).start()

def test_process():
    """d"""
    global child
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)

async def test_task():
    """d"""
    global task
    task = asyncio.create_task(asyncio.Event().wait(), name="forgotten task")

async def test_task_that_ends():
    """d"""
    asyncio.create_task(asyncio.sleep(0.01)).add_done_callback(lambda task: None)

def test_without_docstring():
    pass

async def test_async_failure_counts():
    """d"""
    await asyncio.sleep(0)
    assert False, "seen"

def test_last():
    """d"""
    child.communicate()
'''


def test_what_is_left_behind_fails_the_test(pytester, kit):
    """A thread, a process, a task, or a missing docstring fails the test that it belongs to."""
    kit()
    pytester.makepyfile(LEAKY)

    result = pytester.runpytest_subprocess("-p", "no:randomly")

    # A thread and a process are seen after the test has passed: an error at its teardown.
    result.assert_outcomes(passed=4, failed=2, errors=3)
    for line in (
        "the test left thread 'forgotten' behind",
        "the test left child process [0-9]* behind",
        "the test left task 'forgotten task' * behind",
        "test_without_docstring has no docstring that states the behaviour",
        "*AssertionError: seen",
    ):
        result.stdout.fnmatch_lines(line)


def test_what_is_shared_outlives_a_test(pytester, kit):
    """A process that a fixture of a module shares is left to the next test; another one is not."""
    kit()
    pytester.makepyfile(
        '''
        import subprocess, sys
        import pytest
        from functools import partial

        start = partial(subprocess.Popen, [sys.executable, "-c", "input()"], stdin=subprocess.PIPE)

        @pytest.fixture(scope="module")
        def kept(share):
            with share(start) as process:
                yield process

        def test_one(kept):
            """d"""

        def test_two(kept):
            """d"""
            kept.other = start()

        def test_three(kept):
            """d"""
            kept.other.communicate()
        '''
    )
    result = pytester.runpytest_subprocess("-p", "no:randomly")
    result.assert_outcomes(passed=3, errors=1)
    result.stdout.fnmatch_lines("ERROR *::test_two*")


def test_a_connection_left_open_fails_the_test(pytester, kit):
    """A server connection that outlives its test is an error."""
    kit()
    pytester.makepyfile(
        '''
        import psycopg
        kept = []

        def test_connection(database):
            """d"""
            check = database.assert_unused
            database.assert_unused = lambda: check(timeout=0.1)
            kept.append(psycopg.connect(**database.parameters(application_name="forgotten")))

        def test_next(database):
            """d"""
            kept.pop().close()
        '''
    )

    result = pytester.runpytest_subprocess("-p", "no:randomly")

    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines("*somebody is still connected to test_1*forgotten*")
