package confine

import "golang.org/x/sys/unix"

var abis = []abi{
	{arch: unix.AUDIT_ARCH_AARCH64, ioctl: unix.SYS_IOCTL, socket: unix.SYS_SOCKET, socketpair: unix.SYS_SOCKETPAIR},
	{arch: unix.AUDIT_ARCH_ARM, ioctl: 54, socket: 281, socketpair: 288},
}
