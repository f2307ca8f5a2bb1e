// SPDX-License-Identifier: Apache-2.0

package bpf

//go:generate -command bpf2go go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-O2 -g -mcpu=v3 -fno-strict-aliasing -Wall -Werror -I/usr/include/x86_64-linux-gnu"
//go:generate bpf2go -type addr -type endpoint -type pod_interface -type peer -type prefix_key -type node -type device -type flow_key -type conn -type young_conn -type judgement -type side -type verdict -type policy_flags -type policy -type policy_side -type verdict_key -type verdict_range_key -type verdict_entry -type fragment_key -type fragment -type service_key -type service -type backend_key -type backend -type service_name_key -type service_name -type counter -type settings -type advance -type event -type identity -type hook -type mark -type reason -type endpoint_flags -type device_flags -type peer_flags -type flow_class -type conn_flags -type conn_lifetime -type flow_zone -type metric_slot -type report_interval -type advance_size -type young_size -type event_type -type event_flags Maps maps.bpf.c
//go:generate bpf2go -no-global-types Stub stub.bpf.c
//go:generate bpf2go -no-global-types FromPod from_pod.bpf.c
//go:generate bpf2go -no-global-types ToPod to_pod.bpf.c
//go:generate bpf2go -no-global-types FromNetdev from_netdev.bpf.c
//go:generate bpf2go -no-global-types ToNetdev to_netdev.bpf.c
//go:generate bpf2go -no-global-types FromOverlay from_overlay.bpf.c
//go:generate bpf2go -no-global-types ToOverlay to_overlay.bpf.c
//go:generate bpf2go -no-global-types Sock sock.bpf.c
