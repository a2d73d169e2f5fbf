/* SPDX-License-Identifier: Apache-2.0 */
/* The two tables of the classifier in user space: a copy of a small hash map, and a bounded one that forgets. */
#ifndef SL_CLASSIFIER_TABLE_H
#define SL_CLASSIFIER_TABLE_H

#include "abi/classifier.h"
#include "base/base.h"

static inline uint64_t sl_words_hash(const uint64_t *words, uint32_t nb, uint64_t hash)
{
	uint32_t i;

	for (i = 0; i < nb; i++) {
		hash = (hash ^ words[i]) * 0x9e3779b97f4a7c15ull;
		hash ^= hash >> 32;
	}
	return hash;
}

/* ---- copy -------------------------------------------------------------------------------------------------------- */

enum {
	SL_COPY_MAX = 256,         /* entries */
	SL_COPY_SLOTS = 1024,      /* a power of two, well above: an empty slot ends each search soon */
	SL_COPY_KEY_LEN = 24,      /* longer keys do not fit; shorter ones are filled with zeros */
	SL_COPY_VALUE_LEN = 20,
};
_Static_assert((int)SL_SERVICE_KEYS_MAX <= (int)SL_COPY_MAX, "services fit");
_Static_assert((int)SL_VIP_MAX <= (int)SL_COPY_MAX, "virtual IPs fit");

struct sl_copy_slot {
	uint64_t key[SL_COPY_KEY_LEN / 8];
	uint8_t value[SL_COPY_VALUE_LEN];
	uint32_t is_used;
};

struct sl_copy {
	struct sl_copy_slot slot[SL_COPY_SLOTS];
};

/* The slot of the key, or the empty one where it would be. */
static inline struct sl_copy_slot *sl_copy_slot(struct sl_copy *t, const void *key, size_t key_len)
{
	uint64_t words[SL_COPY_KEY_LEN / 8] = { 0 };
	struct sl_copy_slot *s;
	uint64_t hash;

	memcpy(words, key, key_len);
	hash = sl_words_hash(words, SL_COPY_KEY_LEN / 8, 0);
	do
		s = &t->slot[hash++ % SL_COPY_SLOTS];
	while (s->is_used && (s->key[0] != words[0] || s->key[1] != words[1] || s->key[2] != words[2]));
	return s;
}

static inline void *sl_copy_find(struct sl_copy *t, const void *key, size_t key_len)
{
	struct sl_copy_slot *s = sl_copy_slot(t, key, key_len);

	return s->is_used ? s->value : NULL;
}

/* ---- LRU --------------------------------------------------------------------------------------------------------- */

struct sl_lru {
	struct sl_lru_bucket *bucket;
	uint32_t nb_bucket;        /* a power of two */
	uint32_t now;              /* unit of sl_lru_bucket.used */
	uint64_t seed;             /* unknown to clients: who could fill a bucket could drive others' flows out */
};

_Static_assert(SL_LRU_WAYS == sl_nb(((struct sl_lru_bucket *)0)->tag), "places of a bucket");
_Static_assert(sizeof(struct sl_flow_key) == 40 && sizeof(struct sl_frag_key) == 40, "keys of the LRU tables");
_Static_assert(sizeof(struct sl_flow) <= 16 && sizeof(struct sl_frag) <= 16, "values of the LRU tables");

/* The key's bucket and tag; the place in it, SL_LRU_WAYS if there is none. */
static inline struct sl_lru_bucket *sl_lru_search(const struct sl_lru *t, const void *key, uint32_t *tag,
						  uint32_t *place)
{
	struct sl_lru_bucket *b;
	uint64_t words[5], hash;
	uint32_t i;

	memcpy(words, key, sizeof(words));
	hash = sl_words_hash(words, 5, t->seed);
	*tag = (uint32_t)(hash >> 32) | 1;
	b = &t->bucket[hash & (t->nb_bucket - 1)];
	for (i = 0; i < SL_LRU_WAYS; i++)
		if (b->tag[i] == *tag && !memcmp(b->place[i].key, words, sizeof(words)))
			break;
	*place = i;
	return b;
}

static inline void *sl_lru_find(struct sl_lru *t, const void *key)
{
	uint32_t tag, i;
	struct sl_lru_bucket *b = sl_lru_search(t, key, &tag, &i);

	if (i == SL_LRU_WAYS)
		return NULL;
	if (b->used[i] != t->now)
		b->used[i] = t->now;
	return b->place[i].value;
}

/* The place that a new entry takes: an empty one, else the one that was used longest ago. */
static inline uint32_t sl_lru_victim(const struct sl_lru *t, const struct sl_lru_bucket *b)
{
	uint32_t i, victim = 0;

	for (i = 0; i < SL_LRU_WAYS; i++) {
		if (!b->tag[i])
			return i;
		if (t->now - b->used[i] > t->now - b->used[victim])
			victim = i;
	}
	return victim;
}

/* Makes or replaces the entry. */
static inline void sl_lru_put(struct sl_lru *t, const void *key, const void *value, size_t value_len)
{
	uint32_t tag, place;
	struct sl_lru_bucket *b = sl_lru_search(t, key, &tag, &place);

	if (place == SL_LRU_WAYS)
		place = sl_lru_victim(t, b);
	b->tag[place] = tag;
	b->used[place] = t->now;
	memcpy(b->place[place].key, key, sizeof(b->place[place].key));
	memcpy(b->place[place].value, value, value_len);
}

#endif
