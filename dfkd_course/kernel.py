"""Lets Linux itself refuse what a submission may not do: Landlock and seccomp.

Both are for good, hold for machine code as for Python, and need no rights. Landlock keeps the
process to the paths that it is given. Seccomp looks at each call of the kernel and refuses those
that start programs, reach the network or other processes, or change files in ways that Landlock
does not see.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

#: Places of the machine that Python and its libraries read, and no secret among them.
PLACES = (
    "/usr", "/lib", "/lib64", "/lib32", "/bin", "/opt/conda", "/etc/ld.so.cache", "/etc/fonts",
    "/etc/localtime", "/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/etc/mime.types",
    "/etc/os-release", "/etc/ssl/openssl.cnf", "/sys/devices/system", "/sys/fs/cgroup",
    "/dev/urandom", "/dev/random", "/dev/zero", "/proc/self", "/proc/cpuinfo", "/proc/meminfo",
)  # fmt: skip

# --- seccomp --------------------------------------------------------------------------------------

#: Number of each system call on x86-64 and on 64-bit Arm (asm/unistd.h); None: it has none there.
REFUSED: dict[str, tuple[int | None, int | None]] = {
    # programs and processes; threads are let through, see `_program`
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "process_madvise": (440, 440), "kcmp": (312, 272), "pidfd_getfd": (438, 438),
    "tkill": (200, 130), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424), "setpriority": (141, 140), "ioprio_set": (251, 30),
    "sched_setparam": (142, 118), "sched_setscheduler": (144, 119), "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274), "setrlimit": (160, 164), "setpgid": (109, 154),
    "setsid": (112, 157), "move_pages": (279, 239), "migrate_pages": (256, 238),
    # the network, and whatever else connects processes
    "socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201),
    "accept": (43, 202), "accept4": (288, 242), "sendmsg": (46, 211), "sendmmsg": (307, 269),
    "shmget": (29, 194), "shmat": (30, 196), "semget": (64, 190), "msgget": (68, 186),
    "mq_open": (240, 180), "io_uring_setup": (425, 425), "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    # files by other ways than their paths, and file systems
    "truncate": (76, 45), "mknod": (133, None), "mknodat": (259, 33), "mount": (165, 40),
    "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "open_tree": (428, 428),
    "move_mount": (429, 429), "fsopen": (430, 430), "fsmount": (432, 432),
    "mount_setattr": (442, 442), "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    "swapon": (167, 224), "swapoff": (168, 225), "quotactl": (179, 60), "acct": (163, 89),
    "fanotify_init": (300, 262),
    # the kernel itself
    "unshare": (272, 97), "setns": (308, 268), "bpf": (321, 280), "perf_event_open": (298, 241),
    "userfaultfd": (323, 282), "keyctl": (250, 219), "add_key": (248, 217),
    "request_key": (249, 218), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "kexec_load": (246, 104), "reboot": (169, 142),
    "syslog": (103, 116), "sethostname": (170, 161), "setdomainname": (171, 162),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "adjtimex": (159, 171),
    "clock_adjtime": (305, 266), "personality": (135, 92), "iopl": (172, None),
    "ioperm": (173, None),
}  # fmt: skip
#: These do nothing and say that they have done it: libraries copy the modes and times of files.
IDLE: dict[str, tuple[int | None, int | None]] = {
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54),
    "utime": (132, None), "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "removexattr": (197, 14),
    "lremovexattr": (198, 15), "fremovexattr": (199, 16),
}  # fmt: skip
#: System calls that are refused by their arguments.
CLONE, CLONE3, KILL, TGKILL = (56, 220), (435, 435), (62, 129), (234, 131)
MMAP, PRLIMIT, FCNTL, SENDTO, SOCKETPAIR = (9, 222), (302, 261), (72, 25), (44, 206), (53, 199)
OPENAT, OPEN, OPENAT2 = (257, 56), (2, None), (437, 437)
KNOWN = 463  # numbers from here on are of kernels that nobody has looked at
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column, and audit's number
ALLOW, ERROR, KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
LOAD, AND, EQUAL, AT_LEAST, RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
CLONE_THREAD, SHARED_NOWHERE = 0x10000, 0x21  # the second: shared memory without a file
F_SETOWN, F_SETOWN_EX, SOCK_STREAM = 8, 15, 1


def _step(code: int, k: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("=HBBI", code, yes, no, k)


def _argument(number: int, high: bool = False) -> bytes:
    return _step(LOAD, 16 + 8 * number + 4 * high)


def _answer(code: int) -> bytes:
    return _step(RETURN, ERROR | code if code >= 0 else ALLOW)


def _rules(me: int) -> Iterator[tuple[tuple[int | None, int | None], list[bytes]]]:
    """Yield system calls, each with what is done with it: steps that end in an answer."""
    refuse, allow = _answer(errno.EPERM), _answer(-1)
    for call in REFUSED.values():
        yield call, [refuse]
    for call in IDLE.values():
        yield call, [_answer(0)]
    unknown = _answer(errno.ENOSYS)  # libraries then take an older call
    yield CLONE3, [unknown]
    yield OPENAT2, [unknown]
    # threads, and no processes or namespaces
    yield CLONE, [_argument(0), _step(AND, CLONE_THREAD), _step(EQUAL, 0, 0, 1), refuse, allow]
    for call in (KILL, TGKILL):  # signals to itself
        yield call, [_argument(0), _step(EQUAL, me, 1, 0), refuse, allow]
    # memory that no limit counts
    shared = [_step(AND, SHARED_NOWHERE), _step(EQUAL, SHARED_NOWHERE, 0, 1)]
    yield MMAP, [_argument(3), *shared, refuse, allow]
    new = [_argument(2), _step(EQUAL, 0, 0, 2), _argument(2, True), _step(EQUAL, 0, 1, 0)]
    yield PRLIMIT, [*new, refuse, allow]  # limits are read and not set
    owner = [_step(EQUAL, F_SETOWN, 1, 0), _step(EQUAL, F_SETOWN_EX, 0, 1)]
    yield FCNTL, [_argument(1), *owner, refuse, allow]
    place = [_argument(4), _step(EQUAL, 0, 0, 2), _argument(4, True), _step(EQUAL, 0, 1, 0)]
    yield SENDTO, [*place, refuse, allow]  # to the other end and to no address
    yield (
        SOCKETPAIR,
        [_argument(1), _step(AND, 0xF), _step(EQUAL, SOCK_STREAM, 1, 0), refuse, allow],
    )
    for call, flags in ((OPENAT, 2), (OPEN, 1)):  # emptied by opening it to read
        empties = [_step(AND, os.O_TRUNC | os.O_ACCMODE), _step(EQUAL, os.O_TRUNC, 0, 1)]
        yield call, [_argument(flags), *empties, refuse, allow]


def _program(me: int) -> bytes:
    """Write the filter, in the kernel's classic BPF, for the process with this id."""
    column, architecture = MACHINES[platform.machine()]
    steps = [_step(LOAD, 4), _step(EQUAL, architecture, 1, 0), _step(RETURN, KILL_PROCESS)]
    steps += [_step(LOAD, 0), _step(AT_LEAST, KNOWN, 0, 1), _answer(errno.ENOSYS)]
    for numbers, answer in _rules(me):
        number = numbers[column]
        if number is not None:
            steps += [_step(EQUAL, number, 0, len(answer)), *answer]
    return b"".join([*steps, _answer(-1)])


# --- Landlock -------------------------------------------------------------------------------------

CREATE_RULESET, ADD_RULE, RESTRICT = 444, 445, 446  # on every machine
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
ALL = (1 << 13) - 1  # of the first version
OF_A_FILE = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV


def _handled(version: int) -> int:
    newer = ((2, REFER), (3, TRUNCATE), (5, IOCTL_DEV))
    return ALL | sum(right for since, right in newer if version >= since)


class _Kernel:
    """Calls the kernel, and raises OSError where it refuses."""

    def __init__(self) -> None:
        self.libc = ctypes.CDLL(None, use_errno=True)

    def call(self, number: int, *about: object) -> int:
        got = self.libc.syscall(ctypes.c_long(number), *about)
        if got < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return int(got)

    def allow(self, rules: int, path: Path | str, rights: int) -> None:
        try:
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:  # this machine has no such place
            return
        try:
            if not Path(path).is_dir():
                rights &= OF_A_FILE
            about = struct.pack("=Qi", rights, place)
            self.call(ADD_RULE, rules, 1, about, 0)
        finally:
            os.close(place)


def landlock_version() -> int:
    """Return the version of Landlock that runs here; 0 where there is none."""
    try:
        return _Kernel().call(CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    except (OSError, AttributeError):
        return 0


def missing() -> str | None:
    """Return what this machine lacks for the fence, in words; None where it has all."""
    if sys.platform != "linux":
        return "it is not Linux"
    if platform.machine() not in MACHINES or struct.calcsize("P") != 8:
        return f"no list of its system calls ({platform.machine()})"
    if landlock_version() == 0:
        return "Linux runs without Landlock (it has it since 5.13, and has to begin with it)"
    return None


def enclose(own: Path, readable: Iterable[Path]) -> None:
    """Keep this process, from now on and for good, to its own folder and to what it may read.

    It must have one thread. Files that are open stay open.

    Raises:
        OSError: the kernel cannot do it.
    """
    kernel, version = _Kernel(), landlock_version()
    handled = _handled(version)
    # version 4: no TCP; version 6: no abstract sockets and no signals to processes outside
    about = struct.pack("=QQQ", handled, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    rules = kernel.call(CREATE_RULESET, about, ctypes.c_size_t(size), 0)
    for path in [*map(Path, PLACES), *readable]:
        kernel.allow(rules, path, EXECUTE | READ_FILE | READ_DIR)
    kernel.allow(rules, os.devnull, (READ_FILE | WRITE_FILE | TRUNCATE | IOCTL_DEV) & handled)
    kernel.allow(rules, own, handled)
    if kernel.libc.prctl(38, 1, 0, 0, 0) != 0:  # PR_SET_NO_NEW_PRIVS
        raise OSError("the kernel does not give up rights")
    kernel.call(RESTRICT, rules, 0)
    os.close(rules)
    program = _program(os.getpid())
    steps = ctypes.create_string_buffer(program, len(program))
    about = struct.pack("@HP", len(program) // 8, ctypes.addressof(steps))
    kernel.call((317, 277)[MACHINES[platform.machine()][0]], 1, 1, about)  # all threads
