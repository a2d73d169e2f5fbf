/* SPDX-License-Identifier: Apache-2.0 */
/* What maps.c opens and program.c looks into. One type for each way of looking, so that bpf_map_lookup_elem() is chosen
 * by the compiler (shim.h). */
#ifndef SL_CLASSIFIER_PRIVATE_H
#define SL_CLASSIFIER_PRIVATE_H

#include "classifier/classifier.h"
#include "classifier/table.h"

struct sl_map_config { const struct sl_config *value; };
struct sl_map_vms { const struct sl_vm *value; };                               /* [SL_VM_MAX] */
struct sl_map_services { struct sl_copy copy; };
struct sl_map_vips { struct sl_copy copy; };
struct sl_map_maglev { const struct sl_maglev *value[SL_SERVICE_MAX]; };        /* NULL: no table */
struct sl_map_flows { struct sl_lru lru; };
struct sl_map_frags { struct sl_lru lru; };
struct sl_map_counters { struct sl_counters value; };
struct sl_map_xsks { uint64_t queues; };

/* The fields that the BPF program knows have the names of its maps. */
struct sl_classifier {
	struct sl_map_config config;
	struct sl_map_vms vms;
	struct sl_map_maglev maglev;
	struct sl_map_flows flows;
	struct sl_map_frags frags;
	struct sl_map_xsks xsks;
	struct sl_map_counters counters;
	struct sl_map_services services;
	struct sl_map_vips vips;
	uint32_t generation;           /* of config, when services and vips were copied */
	bool is_copied;
	int services_fd, vips_fd, counters_fd;
	uint32_t nb_cpu;
	struct sl_counters *per_cpu;   /* [nb_cpu], to publish */
};

#endif
