"""The rules of the filter once more, in a form that knows nothing of programs."""

from __future__ import annotations

from typing import Final

REFUSED: Final = {
    *"acct add_key adjtimex bpf clock_adjtime clock_settime delete_module fanotify_init".split(),
    *"finit_module init_module ioperm iopl kcmp kexec_file_load kexec_load keyctl lookup_dcookie".split(),
    *"migrate_pages modify_ldt move_pages name_to_handle_at open_by_handle_at perf_event_open".split(),
    *"pidfd_getfd quotactl quotactl_fd reboot request_key settimeofday swapoff swapon syslog".split(),
    *"userfaultfd uselib vhangup".split(),
}
URING: Final = {"io_uring_setup", "io_uring_enter", "io_uring_register", "openat2"}
MODE_AT: Final = {
    **dict.fromkeys(("chmod", "fchmod", "creat", "mknod"), 1),
    **dict.fromkeys(("fchmodat", "fchmodat2", "mknodat"), 2),
}
TRACING: Final = {"ptrace", "process_vm_readv", "process_vm_writev"}
MOUNTING: Final = {"mount", "umount2", "pivot_root", "chroot", "setns", "sethostname", "setdomainname"}
MODERN: Final = {
    *"clone3 open_tree move_mount fsopen fsconfig fsmount fspick mount_setattr open_tree_attr".split()
}
NAMESPACE_BITS: Final = {
    *(0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000)  # linux/sched.h
}
TERMINAL: Final = {0x5412, 0x541C, 0x5423, 0x4B47, 0x4B49, 0x4B4B, 0x4BFB}
