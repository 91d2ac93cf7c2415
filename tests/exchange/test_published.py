"""Tests of what a shard publishes: a copy is one whole version, however writer and readers interleave.

One thread drives everybody by hand: a reader is interrupted in the middle of its copy by whatever is due.
"""

import json
import subprocess
import sys
from contextlib import ExitStack, closing
from dataclasses import asdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_train.errors import TrainingError
from dist_train.exchange.published import (
    NotPublished,
    PublishedReader,
    PublishedWriter,
    read_all,
)
from dist_train.exchange.segments import Segment
from dist_train.exchange.slots import published_bytes
from dist_train.rules.messages import Version

SIZE = 40


@pytest.fixture
def segments():
    """Makes segments for three slots of SIZE elements, or as said."""
    with ExitStack() as stack:
        yield lambda size=SIZE, slots=3: stack.enter_context(
            closing(Segment.create(published_bytes(size, slots)))
        )


@pytest.fixture
def segment(segments):
    return segments()


@pytest.fixture
def writer(segment):
    return PublishedWriter(segment, SIZE)


@pytest.fixture
def reader(segment):
    return PublishedReader(segment, SIZE)


def publish(writer, version, value=None):
    writer.begin(version).fill_(version if value is None else value)
    writer.commit(version)


class Interrupted:
    """A destination whose copy is interrupted half way."""

    def __init__(self, meanwhile, size=SIZE):
        self.meanwhile = meanwhile
        self.values = torch.full((size,), -1.0)

    def copy_(self, source):
        half = len(self.values) // 2
        self.values[:half].copy_(source[:half])
        self.meanwhile()
        self.values[half:].copy_(source[half:])


class TestWriter:
    def test_the_current_slice_is_the_newest_one(self, writer):
        publish(writer, 1)
        publish(writer, 2)
        assert writer.current().tolist() == [2] * SIZE

    def test_it_stays_while_the_next_one_is_written(self, writer):
        publish(writer, 1)
        writer.begin(2).fill_(7)
        assert writer.current().tolist() == [1] * SIZE

    def test_before_the_first_there_is_none(self, writer):
        writer.begin(0)
        with pytest.raises(ValueError, match="nothing is published"):
            writer.current()

    def test_versions_may_leave_gaps_but_never_return(self, writer):
        publish(writer, 5)
        for version in (5, 4):
            with pytest.raises(ValueError, match=f"version {version} of era 0 does not come after"):
                writer.begin(version)

    def test_only_what_was_begun_is_committed(self, writer):
        for commit in (lambda: None, lambda: writer.begin(3), lambda: publish(writer, 4)):
            commit()
            with pytest.raises(ValueError, match="version 4 of era 0 was not begun"):
                writer.commit(4)

    def test_an_attempt_may_be_given_up_and_made_again(self, writer, reader):
        publish(writer, 1)
        writer.begin(2).fill_(99)
        publish(writer, 3)
        assert reader.newest() == (0, 3)
        assert writer.current().tolist() == [3] * SIZE

    @pytest.mark.parametrize("version", [-1, 2**40])
    def test_a_version_that_does_not_fit_is_refused(self, writer, version):
        with pytest.raises(ValueError, match="from 0 to"):
            writer.begin(version)

    def test_the_largest_version_fits(self, writer, reader):
        writer.begin_era(1000)
        publish(writer, 2**40 - 1, 0)
        assert reader.newest() == (1000, 2**40 - 1)

    def test_one_slot_is_not_enough(self, segment):
        with pytest.raises(ValueError, match="there must be two"):
            PublishedWriter(segment, SIZE, slots=1)

    @pytest.mark.parametrize(("size", "slots"), [(1, 2), (16, 3), (17, 8), (1000, 5)])
    def test_the_segment_is_just_large_enough(self, segments, size, slots):
        writer = PublishedWriter(segments(size, slots), size, slots)
        for version in range(slots):
            publish(writer, version)
        with pytest.raises(ValueError, match="of a segment of"):
            PublishedWriter(segments(size, slots), size, slots + 1)


class TestReader:
    def test_before_the_first_version_there_is_none(self, writer, reader):
        assert reader.newest() is None
        writer.begin(0)
        assert reader.newest() is None
        assert not reader.read(Version(0, 0), torch.empty(SIZE))

    def test_it_sees_a_version_once_it_is_committed(self, writer, reader):
        publish(writer, 1)
        writer.begin(2)
        assert reader.newest() == (0, 1)
        writer.commit(2)
        assert reader.newest() == (0, 2)

    @pytest.mark.parametrize("slots", [2, 3, 5])
    def test_as_many_versions_are_there_as_slots(self, segments, slots):
        segment = segments(SIZE, slots)
        writer, reader = PublishedWriter(segment, SIZE, slots), PublishedReader(segment, SIZE, slots)
        for version in range(10):
            publish(writer, version)
        into = torch.empty(SIZE)
        there = [version for version in range(12) if reader.read(Version(0, version), into)]
        assert there == list(range(10 - slots, 10))
        for version in there:
            assert reader.read(Version(0, version), into)
            assert into.tolist() == [version] * SIZE

    def test_a_version_of_another_era_is_another(self, writer, reader):
        publish(writer, 1)
        assert not reader.read(Version(1, 1), torch.empty(SIZE))

    def test_a_copy_survives_what_happens_in_other_slots(self, writer, reader):
        publish(writer, 1)

        def meanwhile():
            publish(writer, 2)
            publish(writer, 3)

        into = Interrupted(meanwhile)
        assert reader.read(Version(0, 1), into)
        assert into.values.tolist() == [1] * SIZE

    @pytest.mark.parametrize("versions", [(2, 3, 4), range(2, 8)])
    def test_a_copy_is_refused_when_its_slot_was_written_meanwhile(self, writer, reader, versions):
        publish(writer, 1)
        assert not reader.read(Version(0, 1), Interrupted(lambda: [publish(writer, v) for v in versions]))

    def test_a_copy_is_refused_while_its_slot_is_being_written(self, writer, reader):
        publish(writer, 1)

        def meanwhile():
            publish(writer, 2)
            publish(writer, 3)
            writer.begin(4)

        assert not reader.read(Version(0, 1), Interrupted(meanwhile))


class TestEras:
    def test_a_version_of_a_later_era_is_newer_whatever_its_number(self, writer, reader):
        publish(writer, 50, 1)
        writer.begin_era(1)
        publish(writer, 20, 2)
        assert reader.newest() == (1, 20)
        assert writer.current().tolist() == [2] * SIZE

    def test_the_same_version_is_published_again(self, writer, reader):
        publish(writer, 7, 1)
        writer.begin_era(3)
        publish(writer, 7, 2)
        for version, value in ((Version(0, 7), 1), (Version(3, 7), 2)):
            into = torch.empty(SIZE)
            assert reader.read(version, into)
            assert into.tolist() == [value] * SIZE

    def test_a_copy_of_the_earlier_era_is_not_taken_for_the_same_version_of_the_later(self, writer, reader):
        publish(writer, 1)

        def meanwhile():
            writer.begin_era(1)
            for version in range(1, 4):
                publish(writer, version, 9)

        assert not reader.read(Version(0, 1), Interrupted(meanwhile))

    def test_eras_rise(self, writer):
        writer.begin_era(2)
        for era in (2, 1):
            with pytest.raises(ValueError, match=f"era {era} does not come after era 2"):
                writer.begin_era(era)


class TestSuccessor:
    """A writer on a segment whose last writer died, at each point of its work."""

    def test_it_goes_on_after_the_last_version(self, segment, writer, reader):
        writer.begin_era(4)
        publish(writer, 1)
        heir = PublishedWriter(segment, SIZE)
        assert heir.era == 4
        assert heir.current().tolist() == [1] * SIZE
        publish(heir, 2)
        assert reader.newest() == (4, 2)

    def test_what_was_half_written_is_not_there(self, segment, writer, reader):
        publish(writer, 1)
        writer.begin(2).fill_(99)
        heir = PublishedWriter(segment, SIZE)
        assert heir.current().tolist() == [1] * SIZE
        publish(heir, 2)
        into = torch.empty(SIZE)
        assert reader.read(Version(0, 2), into)
        assert into.tolist() == [2] * SIZE

    def test_a_version_with_only_the_first_of_its_two_marks_counts(self, segment, writer, reader):
        publish(writer, 1)
        before = segment.words(0, 1)[0]
        publish(writer, 2)
        segment.words(0, 1)[0] = before
        assert reader.newest() == (0, 1)
        heir = PublishedWriter(segment, SIZE)
        assert reader.newest() == (0, 2)
        assert heir.current().tolist() == [2] * SIZE
        with pytest.raises(ValueError, match="does not come after"):
            heir.begin(2)


class TestReadAll:
    @pytest.fixture
    def shards(self, segments):
        parts = [segments() for _ in range(2)]
        return [PublishedWriter(s, SIZE) for s in parts], [PublishedReader(s, SIZE) for s in parts]

    def test_it_reads_the_newest_version_that_all_have(self, shards):
        writers, readers = shards
        for version in (1, 2):
            publish(writers[0], version, 10 + version)
        publish(writers[1], 1, 21)
        into = [torch.empty(SIZE), torch.empty(SIZE)]
        assert read_all(readers, into, Version(0, 1)) == (0, 1)
        assert [part.unique().tolist() for part in into] == [[11], [21]]

    def test_it_waits_until_all_have_what_is_asked_for(self, shards):
        writers, readers = shards
        due = [lambda: publish(writers[0], 2), lambda: publish(writers[1], 1), lambda: publish(writers[1], 3)]
        due += [lambda: publish(writers[0], 3)]
        waits = []

        def pause(seconds):
            waits.append(seconds)
            due.pop(0)()

        into = [torch.empty(SIZE), torch.empty(SIZE)]
        assert read_all(readers, into, Version(0, 2), pause=pause) == (0, 3)
        assert [part.unique().tolist() for part in into] == [[3], [3]]
        assert len(waits) == 4
        assert all(0 < seconds < 0.01 for seconds in waits)

    def test_an_era_that_is_over_is_not_read_for_the_one_asked_for(self, shards):
        writers, readers = shards
        for writer in writers:
            publish(writer, 100)

        def pause(_):
            for writer in writers:
                writer.begin_era(1)
                publish(writer, 90)

        assert read_all(readers, [torch.empty(SIZE)] * 2, Version(1, 0), pause=pause) == (1, 90)

    def test_patience_begins_again_with_every_copy_that_was_torn(self, shards):
        writers, readers = shards
        for writer in writers:
            publish(writer, 0)
        now, versions = [0.0], iter(range(1, 100))

        def meanwhile():
            # A copy takes longer than patience lasts; for a while every one is overtaken.
            now[0] += 10
            for version in versions if now[0] < 100 else ():
                for writer in writers:
                    publish(writer, version)
                if version % 4 == 0:
                    break

        into = [Interrupted(meanwhile), Interrupted(lambda: None)]
        read = read_all(readers, into, Version(0, 0), 5, clock=lambda: now[0], pause=lambda _: None)
        assert read == (0, 36)
        assert [part.values.unique().tolist() for part in into] == [[36], [36]]

    @pytest.mark.parametrize(
        ("published", "told"), [((), "nothing"), ((4,), "version 4"), ((4, 5), "version 5")]
    )
    def test_when_patience_ends_it_names_the_shard_that_is_behind(self, shards, published, told):
        writers, readers = shards
        publish(writers[0], 9)
        for version in published:
            publish(writers[1], version)
        now = [100.0]

        def pause(_):
            now[0] += 1

        with pytest.raises(
            NotPublished, match=rf"waited 5 s for version 6 .* shard 1 has published {told}"
        ) as e:
            read_all(readers, [torch.empty(SIZE)] * 2, Version(0, 6), 5, clock=lambda: now[0], pause=pause)
        assert isinstance(e.value, TrainingError)
        assert 105 <= now[0] <= 107


class Shards:
    """Shards that publish the same versions, each at its own pace; one turn is a quarter of one's update.

    The slice of shard s in version number k is k * 10 + s all over.
    """

    def __init__(self, segments, versions, slots):
        self.versions = versions
        self.writers = [PublishedWriter(segment, SIZE, slots) for segment in segments]
        self.work = [self.shard(number) for number in range(len(segments))]

    def shard(self, number):
        writer = self.writers[number]
        for index, (era, version) in enumerate(self.versions):
            if era != writer.era:
                writer.begin_era(era)
            slot = writer.begin(version)
            yield
            slot[: SIZE // 2] = index * 10 + number
            yield
            slot[SIZE // 2 :] = index * 10 + number
            yield
            writer.commit(version)
            yield

    def turn(self, number):
        next(self.work[number], None)

    def finish(self):
        for work in self.work:
            for _ in work:
                pass


@given(data=st.data(), shards=st.integers(1, 3), slots=st.integers(2, 4), late=st.booleans())
@settings(max_examples=150, deadline=None)
def test_a_read_of_several_shards_is_one_version_of_all(data, shards, slots, late):
    versions = data.draw(
        st.lists(st.builds(Version, st.integers(0, 2), st.integers(0, 4)), unique=True, min_size=1).map(
            sorted
        )
    )
    turns = iter(data.draw(st.lists(st.lists(st.integers(0, shards - 1), max_size=12), max_size=12)))
    at_least = versions[-1] if late else versions[0]
    with ExitStack() as stack:
        size = published_bytes(SIZE, slots)
        segments = [stack.enter_context(closing(Segment.create(size))) for _ in range(shards)]
        world = Shards(segments, versions, slots)

        def meanwhile(_=None):
            due = next(turns, None)
            if due is None:
                world.finish()
            else:
                for number in due:
                    world.turn(number)

        into = [Interrupted(meanwhile) for _ in range(shards)]
        readers = [PublishedReader(segment, SIZE, slots) for segment in segments]
        version = read_all(readers, into, at_least, pause=meanwhile)
    assert version >= at_least
    index = versions.index(version)
    for number, part in enumerate(into):
        assert part.values.tolist() == [index * 10 + number] * SIZE


# Publishes as fast as it can, until it is told to end; says when the first version is there.
HAMMER = """
import json, select, sys
from dist_train.exchange.published import PublishedWriter
from dist_train.exchange.segments import Address, Segment

size, address = int(sys.argv[1]), Address(**json.loads(sys.argv[2]))
writer = PublishedWriter(Segment.open(address), size)
version = 0
while not select.select([sys.stdin], [], [], 0)[0]:
    writer.begin(version).fill_(version)
    writer.commit(version)
    if version == 0:
        print("ready", flush=True)
    version += 1
"""


@pytest.mark.processes
def test_a_reader_beside_a_writer_never_gets_a_torn_copy(segments):
    size, wanted = 100_000, 300
    segment = segments(size)
    reader, into = PublishedReader(segment, size), torch.empty(size)
    command = [sys.executable, "-c", HAMMER, str(size), json.dumps(asdict(segment.address))]
    last, whole = Version(0, 0), 0
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as hammer:
        try:
            assert hammer.stdout.readline() == b"ready\n"
            while whole < wanted and hammer.poll() is None:
                version = reader.newest()
                assert version >= last
                last = version
                if reader.read(version, into):
                    whole += 1
                    assert into.min() == into.max() == version.number
            hammer.communicate(timeout=30)
        finally:
            hammer.kill()
    assert (hammer.returncode, whole) == (0, wanted)
    assert last.number > 10
