#!/bin/sh
# The first process of a lab guest: loads KVM, runs the payload, reports its exit status.
# ttyS0 is the kernel's console. ttyS1 carries the payload's output and nothing else, each line
# as "SEQUENCE LENGTH REPEATED TEXT", so that the host notices a byte that was lost on the way.
# The last REPEATED bytes are those of the line before and left out: the host's facts are the same
# in all records, and an emulated serial port takes 5 us (QEMU) to 90 us (Bochs) for a byte.
export PATH=/bin HOME=/tmp TMPDIR=/tmp LC_ALL=C
mount -t devtmpfs dev /dev
mount -t proc proc /proc
echo lab >/proc/sys/kernel/hostname
stty -F /dev/ttyS1 115200 raw
exec 3>/dev/ttyS1
echo "start $(cut -d' ' -f1 /proc/uptime)" >&3
mount -t sysfs sys /sys
# A memory cgroup for the payload, where the kernel has them: the root's memory nobody counts.
if mount -t cgroup2 cgroup /sys/fs/cgroup && echo +memory >/sys/fs/cgroup/cgroup.subtree_control; then
    busybox mkdir /sys/fs/cgroup/payload && echo $$ >/sys/fs/cgroup/payload/cgroup.procs
fi 2>/dev/null
for module in /modules/*.ko; do
    [ -e "$module" ] || continue
    why=$(insmod "$module" $(cat "${module%.ko}.args" 2>/dev/null) 2>&1) ||
        echo "refused ${module##*/} ${why##*: }" >&3
done
[ -e /dev/kvm ] || { echo "nokvm" >&3; exec poweroff -f; }
echo "kvm $(cut -d' ' -f1 /proc/uptime)" >&3
{ . /payload.sh; echo $? >/tmp/status; } </dev/null |
    awk '{
        start = index($0, ", \"host\": ")
        facts = start ? substr($0, start) : ""
        same = facts == known ? length(facts) : 0
        print NR, length($0), same, substr($0, 1, length($0) - same)
        known = facts
        fflush()
    } END { print NR >"/tmp/count" }' >&3
echo "end $(cat /tmp/status) $(cat /tmp/count) $(cut -d' ' -f1 /proc/uptime)" >&3
exec poweroff -f
