# Boots a systemd of its own: own mounts, processes, network and control group, on a copy-on-write
# view of this machine, of which it can change nothing.
#
# $1: an empty folder; $2: the units, which are all that there are; $3: name of the control group;
# $4: a folder that is shared with it
set -eu
base=$1 units=$2 group=$3 shared=$4
mount --make-rprivate /
mount -t tmpfs tmpfs "$base"
mkdir "$base/upper" "$base/work" "$base/root" "$base/groups"
mount -t cgroup2 cgroup2 "$base/groups"
mkdir -p "$base/groups/$group"
echo $$ > "$base/groups/$group/cgroup.procs"
exec unshare --cgroup --pid --fork --kill-child=KILL --uts --ipc --net sh -eu -c '
base=$1 units=$2 shared=$3
umount "$base/groups"
mount -t overlay overlay -o "lowerdir=/,upperdir=$base/upper,workdir=$base/work" "$base/root"
cd "$base/root"
mount -t proc proc proc
mount --bind -o ro proc/sys proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=755 tmpfs dev
mknod -m 666 dev/null c 1 3
mknod -m 666 dev/zero c 1 5
mknod -m 666 dev/random c 1 8
mknod -m 666 dev/urandom c 1 9
mkdir -p dev/shm run/units run/nothing "./$shared"
mount --bind "$shared" "./$shared"
cp "$units"/* run/units
# Generators would make units of what this machine has in /etc.
mount --bind run/nothing lib/systemd/system-generators
mount -t tmpfs tmpfs var/log
mkdir var/log/journal
mount -t tmpfs tmpfs etc/systemd/system
exec env -i container=docker PATH=/usr/sbin:/usr/bin:/sbin:/bin SYSTEMD_LOG_TARGET=null \
  SYSTEMD_UNIT_PATH=/etc/systemd/system:/run/units \
  chroot . /lib/systemd/systemd --system --show-status=no
' sh "$base" "$units" "$shared"
