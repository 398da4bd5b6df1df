"""Reading a live message off its socket with as few calls as there are frames.

pyzmq's `recv_multipart` asks after every frame whether there are more, and each question costs as much as a frame. Live
messages have three frames; only of the third it has to be asked, which a `zmq.Frame` can tell for nothing.
"""

import zmq

__all__ = ["receive_live"]


def receive_live(socket: "zmq.Socket[bytes]") -> list[bytes]:
    """Return the frames of the next message: three, or another number if it is no live message.

    A message with fewer frames takes the next one with it; what is left of that is read too, and none of it returned.

    Raises:
        zmq.Again: there is none.
    """
    receive = socket.recv
    frames = [receive(zmq.NOBLOCK)]
    try:
        frames.append(receive(zmq.NOBLOCK))
        last = receive(zmq.NOBLOCK, copy=False)
    except zmq.Again:
        return frames  # Messages arrive whole: this one had no more frames.
    frames.append(last.bytes)
    while last.more:
        last = receive(zmq.NOBLOCK, copy=False)
        frames.append(b"")
    return frames
