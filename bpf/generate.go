// SPDX-License-Identifier: Apache-2.0

package bpf

//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-O2 -g -mcpu=v3 -Wall -Werror -I/usr/include/x86_64-linux-gnu" -type addr -type endpoint -type pod_interface -type peer -type prefix_key -type node -type device -type flow_key -type conn -type judgement -type fragment_key -type fragment -type service_key -type service -type backend_key -type backend -type service_name_key -type service_name -type counter -type settings -type event -type identity -type hook -type mark -type reason -type endpoint_flags -type peer_flags -type flow_class -type conn_flags -type event_type -type event_flags Maps maps.bpf.c
