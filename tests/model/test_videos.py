"""Videos that someone else made and named: files of video, and nothing else."""

import os
import shutil
import socket
import threading

import cv2
import numpy as np
import pytest

from micron_model.data import FramePairs, find_clips
from micron_model.data.clips.frames import FrameError, VideoClip
from micron_model.data.clips.videos import open_video
from micron_model.prediction import _whole_frames
from writers import grey, write_small_shards, write_video

#: Names that something asked for a video could take for more than a name.
ODD_NAMES = [
    b"http:127.0.0.1:PORT?.avi",
    b"https:127.0.0.1:PORT?.avi",
    b"rtsp:127.0.0.1:PORT.avi",
    b"tcp:127.0.0.1:PORT?.avi",
    b"concat:a.avi|b.avi",
    b"subfile,,start,0,end,0,,:a.avi",
    b"file:a.avi",
    b"data:a.avi",
    b"pipe:0.avi",
    b"-.avi",
    b"img%04d.avi",
    b"0.avi",
    b"{0..3}.avi",
    b"[a]*.avi",
    b"videotestsrc ! appsink.avi",
    b"a\nb.avi",
    b"caf\xe9.avi",
    "Gesicht \N{SMILING FACE WITH OPEN MOUTH}.avi".encode(),
]


@pytest.fixture
def listener():
    """The port of a server, and what connected to it."""
    connected = []
    with socket.create_server(("127.0.0.1", 0)) as served:
        served.settimeout(0.05)
        ended = threading.Event()

        def accept():
            while not ended.is_set():
                try:
                    connection, _ = served.accept()
                except TimeoutError:
                    continue
                connected.append(connection.recv(200))
                connection.close()

        thread = threading.Thread(target=accept)
        thread.start()
        yield served.getsockname()[1], connected
        ended.set()
        thread.join()


@pytest.fixture
def odd(tmp_path, monkeypatch, listener):
    """Names in the current folder, which is given as ``.``: a video by each."""
    video = write_video(tmp_path / "v.avi", grey(40))
    folder = tmp_path / "found"
    folder.mkdir()
    for name in ODD_NAMES:
        name = name.replace(b"PORT", b"%d" % listener[0])
        shutil.copy(video, os.fsencode(folder) + b"/" + name)
    video.unlink()
    monkeypatch.chdir(folder)
    return folder


def test_a_video_is_read_whatever_its_name(odd, listener, tmp_path):
    clips, problems = find_clips(["."])
    assert (len(clips), problems) == (len(ODD_NAMES), [])
    for clip in clips:
        levels = clip.read([30, 3], 24)[:, 0, 5, 5].astype(int)
        assert np.abs(levels - [90, 9]).max() <= 3
        assert [i for i, _ in clip.decode(38, 40, 24)] == [38, 39]
        assert sum(1 for _ in _whole_frames(clip)) == 40
    assert FramePairs(clips, 24)[0]["problems"] == []
    assert write_small_shards(["."], tmp_path / "out").frames == 40 * len(ODD_NAMES)
    assert listener[1] == []


@pytest.mark.parametrize("name", ["http:127.0.0.1:{}?.avi", "caf\udce9.avi"])
def test_a_video_that_is_named_is_a_file_too(odd, listener, name):
    clip = VideoClip.open(next(p for p in odd.iterdir() if p.name == name.format(listener[0])))
    assert len(clip) == 40
    assert listener[1] == []


def png():
    return cv2.imencode(".png", np.zeros((64, 64, 3), np.uint8))[1].tobytes()


@pytest.mark.parametrize(
    "content",
    [
        b"ffconcat version 1.0\nfile other.avi\n",
        b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:1,\nother.avi\n#EXT-X-ENDLIST\n",
        b"v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n",
        png(),
        b"",
    ],
    ids=["list of files", "playlist", "session", "picture", "empty"],
)
@pytest.mark.parametrize("name", ["clip01.mp4", "clip%02d.avi", "list.m3u8"])
def test_what_is_no_container_of_video_is_refused(tmp_path, capfd, name, content):
    """FFmpeg and OpenCV would read the files beside it, that it lists or whose numbers follow."""
    write_video(tmp_path / "other.avi", grey(5))
    for path in (tmp_path / name, tmp_path / "clip02.mp4", tmp_path / "clip02.avi"):
        path.write_bytes(content)
    with pytest.raises(FrameError, match="no frame can be decoded from this video"):
        VideoClip.open(tmp_path / name)
    assert "WARN" not in capfd.readouterr().err  # of OpenCV; FFmpeg's level is set once a process


def test_options_of_the_user_stay_and_are_not_touched(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENCV_FFMPEG_CAPTURE_OPTIONS", "threads;1")
    monkeypatch.delenv("OPENCV_FFMPEG_LOGLEVEL", raising=False)
    level = cv2.utils.logging.getLogLevel()
    with open_video(write_video(tmp_path / "v.avi", grey(5))) as video:
        assert video.isOpened()
        assert os.environ["OPENCV_FFMPEG_CAPTURE_OPTIONS"] == "threads;1"
    assert "OPENCV_FFMPEG_LOGLEVEL" not in os.environ
    assert cv2.utils.logging.getLogLevel() == level
