// SPDX-License-Identifier: Apache-2.0

package cgroup

import "testing"

func TestMountinfoLines(t *testing.T) {
	for name, c := range map[string]struct {
		line, dir, options string
		ok                 bool
	}{
		"v1":         {"30 22 0:26 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory", "/sys/fs/cgroup/memory", "memory", true},
		"co-mounted": {"30 22 0:26 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct", "/sys/fs/cgroup/cpu,cpuacct", "cpu,cpuacct", true},
		"named":      {"31 22 0:27 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd", "/sys/fs/cgroup/systemd", "none,name=systemd", true},
		"v2":         {"32 22 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw", "/sys/fs/cgroup/unified", "", true},
		"other":      {"33 22 0:29 / /tmp rw - tmpfs tmpfs rw", "", "", false},
		"short":      {"33 22", "", "", false},
	} {
		h, ok := parse(c.line)
		if ok != c.ok || ok && (h.Dir != c.dir || h.Options != c.options) {
			t.Errorf("%s: %+v, %v", name, h, ok)
		}
	}
}
