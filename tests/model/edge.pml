/* SPDX-License-Identifier: Apache-2.0 */
/* One ordered pair of an edge: a sender, a receiver, their ring with completions, sleep and doorbells, death and a new owner of the seat.
 *
 * What a step stands for is named by the C function in its comment (c/edge/ring.c, attach.c, edge.c, flow.c). Order of memory: each process
 * writes into a buffer from which the process Memory takes stores in any order that C11 allows (SB = its depth): a release store goes
 * only after all earlier ones, a relaxed one may overtake others, a fence waits until the buffer is empty. Loads are taken in program
 * order, which is what the acquire loads of the C code guarantee for all places where order matters. An atomic block holds at most one
 * load of a word that another may be changing; own words and stores into the own buffer nobody else can see, so they may share it.
 *
 *   N      ring_cap, a power of two          IM    mask of the free-running indices: they wrap in the model, too
 *   M      entries of a sender               NS    payload slots of its arena
 *   CRASH  0 nobody, 1 the receiver, 2 the sender dies at any step; then a new owner takes the seat and the same memory
 *   LOSSY  doorbells get lost and come unasked, the heartbeat's timer wakes
 *   BUG_*  one known mistake each; run shows that every one is found */
#ifndef N
#define N 2
#endif
#ifndef IM
#define IM 3
#endif
#ifndef M
#define M 5
#endif
#ifndef NS
#define NS 2
#endif
#ifndef SB
#define SB 3
#endif
#ifndef CRASH
#define CRASH 0
#endif
#ifndef M2                         /* entries of a second owner of the sender's seat */
#define M2 1
#endif
#define IDS (M + M2 + 1)

#define START IM                   /* indices begin here, not at 0, so that they wrap at once */

#define S 0
#define R 1
/* addresses of the shared words */
#define PPAIR 0                    /* prod_pair */
#define CONS 1
#define CPAIR 2                    /* cons_pair */
#define SLEEP 3                    /* + S, R: sl_peer.sleeping */
#define BODY 5                     /* entries[N] but for their last words: id | slot << 4 */
#define LAST (BODY + N)            /* their last words: lap | epoch << 2 */
#define COMP (LAST + N)            /* completions[N]: seq | count << 3 | lap << 6 */
#define PAY (COMP + N)             /* payload of slot: the id that was written there */
#define NADDR (PAY + NS)

#define PAIR(s, r) ((s) << 2 | (r))
#define AT(n) ((n) & (N - 1))
#ifdef BUG_ONE_LAP
#define LAP(n) 1
#else
#define LAP(n) (((n) & N) -> 2 : 1)          /* sl_lap */
#endif
#define THERE(n, epoch) (LAP(n) | (epoch) << 2)   /* there() */

byte mem[NADDR];
typedef buffer { byte n; byte a[3]; byte v[3]; bit rel[3] };
buffer sb[2];

bit bell[2];                       /* eventfd of each seat's owner */
bit kill[2], dead[2];
bit gone[2];                       /* to the survivor: the peer left (ivshmem) */
bit news[2]; byte page[2];         /* to each seat's owner: route page changed; incarnation across, 0 = none */
byte announced[2];                 /* to each: the doorbell of this incarnation across has come */
bit seen[2];                       /* routes_seen: the page without the dead peer was taken over */
bit all_done;

/* what really happened, for the assertions only */
bit accepted[IDS], begun[IDS];
byte first_id;                     /* of the present pairing */
byte slot_of[NS];                  /* id that owns the slot, 0 = free */

/* sl_post_*, sl_publish_* */
inline post(me, addr, val) { atomic { sb[me].n < SB -> sb[me].a[sb[me].n] = addr; sb[me].v[sb[me].n] = val; sb[me].rel[sb[me].n] = 0; sb[me].n++ } }
inline publish(me, addr, val) { atomic { sb[me].n < SB -> sb[me].a[sb[me].n] = addr; sb[me].v[sb[me].n] = val; sb[me].rel[sb[me].n] = 1; sb[me].n++ } }
/* sl_full_fence */
inline fence(me) { (sb[me].n == 0) }

#define MAY_DRAIN0(b) (b.n > 0)
#define MAY_DRAIN1(b) (b.n > 1 && !b.rel[1] && b.a[1] != b.a[0])
#define MAY_DRAIN2(b) (b.n > 2 && !b.rel[2] && b.a[2] != b.a[0] && b.a[2] != b.a[1])
inline drain(b, i)
{
	d_step {
		mem[b.a[i]] = b.v[i];
		b.n--;
		if :: i < 1 -> b.a[0] = b.a[1]; b.v[0] = b.v[1]; b.rel[0] = b.rel[1] :: else fi;
		if :: i < 2 -> b.a[1] = b.a[2]; b.v[1] = b.v[2]; b.rel[1] = b.rel[2] :: else fi;
		b.a[b.n] = 0; b.v[b.n] = 0; b.rel[b.n] = 0
	}
}

active proctype Memory()
{
end:	do
	:: atomic { MAY_DRAIN0(sb[S]) -> drain(sb[S], 0) }
	:: atomic { MAY_DRAIN1(sb[S]) -> drain(sb[S], 1) }
	:: atomic { MAY_DRAIN2(sb[S]) -> drain(sb[S], 2) }
	:: atomic { MAY_DRAIN0(sb[R]) -> drain(sb[R], 0) }
	:: atomic { MAY_DRAIN1(sb[R]) -> drain(sb[R], 1) }
	:: atomic { MAY_DRAIN2(sb[R]) -> drain(sb[R], 2) }
	od
}

/* write(eventfd) */
inline ring_bell(whom)
{
#ifdef LOSSY
	if :: bell[whom] = 1 :: skip fi
#else
	bell[whom] = 1
#endif
}

#ifdef LOSSY
#define OR_TIMER :: skip
#else
#define OR_TIMER
#endif

/* --- sender --- */

/* sent_give_back and sl_buf_free: exactly once */
inline slot_free(x)
{
	assert(!(free & (1 << x)));
	free = free | (1 << x);
	slot_of[x] = 0
}

/* link_up, the half that the sender owns */
inline tx_up(inc_of_peer)
{
	peer = inc_of_peer; up = 0;
	prod = START; pub = START; old = START; cpr = START;
#ifdef BUG_PAIR_FIRST
	publish(S, PPAIR, PAIR(inc, peer));
#else
	publish(S, PPAIR, 0);
#endif
	fence(S);
	first_id = next;
#ifndef BUG_NOT_CLEARED
	i = 0;
	do :: i < N -> post(S, LAST + i, 0); i++ :: else -> break od;
	i = 0;
#endif
#ifndef BUG_PAIR_FIRST
	publish(S, PPAIR, PAIR(inc, peer))
#endif
}

/* sl_flows_link_lost with first_pending, then link_down: what was never taken may be done elsewhere, the slots come back */
inline tx_down()
{
	if
	:: peer ->
		k = mem[CONS];
		ours = mem[CPAIR] == PAIR(inc, peer);
		atomic {
			i = old;
			do
			:: i == prod -> break
			:: else ->
				if
				:: open[AT(i)] ->
#if CRASH == 1 && !defined(BUG_RECLAIM_LIVE)
					/* unseen: i - first_pending < prod - first_pending */
					if
					:: ours && ((i - k) & IM) < ((prod - k) & IM) -> assert(!begun[id[AT(i)]])
					:: ours && !(((i - k) & IM) < ((prod - k) & IM)) -> assert(accepted[id[AT(i)]])   /* else it was pending and is lost */
					:: !ours   /* no proof: reported as lost, never done twice */
					fi;
#endif
					slot_free(slot[AT(i)]);
					post(S, PAY + slot[AT(i)], 0);   /* other links write into it next */
					open[AT(i)] = 0; slot[AT(i)] = 0; id[AT(i)] = 0
				:: else
				fi;
				i = (i + 1) & IM
			od;
			i = 0; k = 0; ours = 0
		}
		old = prod;
		lost = peer;
		publish(S, PPAIR, 0);
		peer = 0
	:: else
	fi
}

/* is_up: the other half is set up for this pairing; looked at until it is */
inline tx_see_up() { atomic { if :: peer && !up && mem[CPAIR] == PAIR(inc, peer) -> up = 1 :: else fi } }

#define COMPLETION (mem[COMP + AT(cpr)] >> 6 == LAP(cpr))     /* completion_read */

/* sl_link_reap and completion_apply */
inline reap()
{
	tx_see_up();
	do
	:: atomic { peer && up && COMPLETION -> k = mem[COMP + AT(cpr)] & 63; apply(); work = 1 }
	:: atomic { !(peer && up && COMPLETION) -> break }
	od
}

inline apply()
{
	i = k & 7; k = k >> 3;
#ifndef BUG_COMPLETE_TWICE   /* with it, the sender is as careless as the receiver */
	assert(k && ((i - old) & IM) < ((pub - old) & IM) && k <= ((pub - i) & IM));
#endif
	do
	:: k == 0 -> break
	:: else ->
#ifndef BUG_COMPLETE_TWICE
		assert(open[AT(i)]);   /* else an honest receiver would be quarantined */
#endif
		slot_free(slot[AT(i)]);
		open[AT(i)] = 0; slot[AT(i)] = 0; id[AT(i)] = 0;
		i = (i + 1) & IM; k--
	od;
	i = 0;
	cpr = (cpr + 1) & IM;
	do
	:: old != pub && !open[AT(old)] -> old = (old + 1) & IM
	:: else -> break
	od
}

#ifdef BUG_NO_ROOM_CHECK
#define ROOM (((prod - old) & IM) < N + 1)
#else
#define ROOM (((prod - old) & IM) < N)     /* sl_link_room */
#endif

#ifdef LIVE                                /* fairness knows nothing of choices: a layer that may always put its work off need not end */
#define MAY_WAIT 0
#else
#define MAY_WAIT 1
#endif

/* sl_buf_alloc, the layer writes the payload, sl_route_request */
inline send()
{
	if :: free & 1 -> k = 0
	:: !(free & 1) && free & 2 -> k = 1
	:: !(free & 3) && free & 4 -> k = 2
	fi;
	free = free & ~(1 << k);
	slot_of[k] = next;
#ifdef BUG_PUBLISH_FIRST
	publish(S, LAST + AT(prod), THERE(prod, inc));
#endif
	post(S, PAY + k, next);
	post(S, BODY + AT(prod), next | k << 4);
	if
	:: prod != pub -> post(S, LAST + AT(prod), THERE(prod, inc))
	:: else          /* held back: it publishes the whole burst */
	fi;
	open[AT(prod)] = 1; slot[AT(prod)] = k; id[AT(prod)] = next;
	prod = (prod + 1) & IM; next++; k = 0; work = 1
}

/* sl_signal_vm: link_publish, fence, look, ring */
inline tx_signal()
{
	if
	:: peer && pub != prod ->
#ifdef BUG_LAST_RELAXED
		atomic { post(S, LAST + AT(pub), THERE(pub, inc)); pub = prod };
#else
		atomic { publish(S, LAST + AT(pub), THERE(pub, inc)); pub = prod };
#endif
#ifndef BUG_NO_FENCE_SIGNAL
		fence(S);
#endif
		atomic { if :: mem[SLEEP + R] && fd == peer -> ring_bell(R) :: else fi }
	:: else
	fi
}

inline tx_control()
{
	do
	:: gone[S] ->              /* sl_edge_peer_gone: of incarnation 1 only */
		gone[S] = 0;
		if :: peer == 1 -> tx_down() :: else fi
	:: news[S] ->              /* sl_edge_routes_set */
		atomic { news[S] = 0; k = page[S] }
		if :: peer && peer != k -> tx_down() :: else fi;
#ifdef BUG_RELINK
		if :: !peer && k -> tx_up(k) :: else fi;
#else
		if :: !peer && k && k != lost -> tx_up(k) :: else fi;
#endif
		if :: k == 0 -> seen[S] = 1 :: else fi;
		k = 0
	:: announced[S] ->         /* sl_edge_doorbell_set: it may have been missed before */
		atomic { fd = announced[S]; announced[S] = 0 }
#ifndef BUG_LATE_BELL
		ring_bell(R)
#endif
	:: else -> break
	od
}

proctype Sender(byte inc, next, last)
{
	byte prod, pub, old, cpr, peer, lost, nb, i, k, free = (1 << NS) - 1;
	byte slot[N], id[N];
	byte fd;
	bit open[N], work, ours, up;

	{
		publish(S, PPAIR, 0);                   /* sl_edge_attach: link_init, self_init */
		post(S, SLEEP + S, 0);
		do
		:: all_done -> break
		:: else ->
			atomic { work = 0; tx_control() };
			reap();
			atomic {
				do
				:: peer && next <= last && ROOM && free -> send()
				:: MAY_WAIT -> break
				:: !(peer && next <= last && ROOM && free) -> break
				od
			};
			tx_signal();
			if
			:: next > last && old == prod ->
				assert(free == (1 << NS) - 1);  /* every slot has come back */
				all_done = 1
			:: next <= last || old != prod
			fi;
			if
			:: work || all_done
			:: !work && !all_done ->
				post(S, SLEEP + S, 1);          /* sl_edge_sleep_set: SL_SLEEP_COMPLETIONS */
#ifndef BUG_NO_FENCE_SLEEP
				fence(S);
#endif
				tx_see_up();
				if                              /* sl_edge_pending: for completions, when there is something to wait for */
#ifndef BUG_NO_RECHECK
				:: peer && up && COMPLETION
#endif
				:: peer && next <= last && ROOM && free
				:: else ->
					if                      /* epoll_wait */
					:: bell[S] -> bell[S] = 0
					:: gone[S] || news[S] || announced[S] || all_done
					OR_TIMER
					fi
				fi;
				post(S, SLEEP + S, 0)
			fi
		od;
		goto stop
	} unless { kill[S] };
	d_step { i = 0; do :: i < NS -> slot_of[i] = 0; i++ :: else -> break od; i = 0 }   /* its arena dies with it */
stop:	dead[S] = 1
}

/* --- receiver --- */

inline rx_up(inc_of_peer)
{
	peer = inc_of_peer; up = 0;
	cons = START; cpr = START; cpub = START; runn = 0;
	publish(R, CPAIR, 0);
	fence(R);
#ifndef BUG_COMPLETIONS_NOT_CLEARED
	i = 0;
	do :: i < N -> post(R, COMP + i, 0); i++ :: else -> break od;
	i = 0;
#endif
	post(R, CONS, START);
	publish(R, CPAIR, PAIR(peer, inc))
}

inline rx_see_up() { atomic { if :: peer && !up && mem[PPAIR] == PAIR(peer, inc) -> up = 1 :: else fi } }

#define NEXT (LAST + AT(cons + nb))
#define FOUND (k & 3)

/* absent_check: what is neither there nor the last lap's, nor nothing, is a new owner's or a lie */
inline absent_check()
{
	if
	:: FOUND && FOUND != 3 - LAP(cons + nb) -> k = 0; atomic { assert(mem[PPAIR] != PAIR(peer, inc)); up = 0 }
	:: else -> k = 0
	fi
}

/* sl_link_recv: entries_copy, the last word of each first, then cons */
inline recv()
{
	nb = 0;
#ifdef BUG_ENTRY_BEFORE_PAIR
	atomic { k = mem[NEXT]; if :: !(peer && k == THERE(cons, peer)) -> k = 0 :: else fi };
	rx_see_up();
	if :: up && k -> atomic { k = mem[BODY + AT(cons)]; accept(); nb++ } :: else -> k = 0 fi;
#endif
	rx_see_up();
	do
	:: peer && up && nb < N ->
		atomic { k = mem[NEXT] };
		if
		:: k == THERE(cons + nb, peer) -> atomic { k = mem[BODY + AT(cons + nb)]; accept(); nb++ }
		:: else -> absent_check(); break
		fi
	:: else -> break
	od;
	cons = (cons + nb) & IM;
#ifndef BUG_CONS_LATE
	consume()
#endif
}

inline accept()
{
	id[AT(cons + nb)] = k & 15;
	slot[AT(cons + nb)] = k >> 4;
	held[AT(cons + nb)] = 1;
	assert(!accepted[k & 15]);               /* not twice */
	accepted[k & 15] = 1;
	if :: expect == 0 -> expect = first_id :: else fi;
	assert((k & 15) == expect);              /* in order, none left out, none of a former pairing */
	expect++;
	k = 0
}

inline consume()
{
	atomic { if :: nb -> publish(R, CONS, cons) :: else fi }
}

inline run_flush()
{
	if
	:: runn -> publish(R, COMP + AT(cpr), runs | runn << 3 | LAP(cpr) << 6); cpr = (cpr + 1) & IM; runn = 0; runs = 0
	:: else
	fi
}

/* no read of a slot that went back to its sender */
#define LAST_LOOK(x) assert(mem[PAY + slot[x]] == id[x])

/* the layer reads the payload a last time, then sl_link_complete(e) */
inline complete(e)
{
	begun[id[AT(e)]] = 1;
#ifndef BUG_COMPLETE_EARLY
	LAST_LOOK(AT(e));
#endif
	if :: runn && ((runs + runn) & IM) != e -> run_flush() :: else fi;
	if :: !runn -> runs = e :: else fi;
	runn++;
#ifdef BUG_COMPLETE_TWICE
	publish(R, COMP + AT(cpr), e | 1 << 3 | LAP(cpr) << 6); cpr = (cpr + 1) & IM;
#endif
#ifdef BUG_COMPLETE_EARLY
	run_flush();
	fence(R);
	LAST_LOOK(AT(e));
#endif
	held[AT(e)] = 0; id[AT(e)] = 0; slot[AT(e)] = 0;
	work = 1
}

/* sl_process_request for each entry in turn, in this order or a later turn's */
inline work_on(all)
{
	i = 0;
	do
	:: i == N -> break
	:: i < N ->
		atomic {
			/* entry number of position AT(cons - N + i): the last N that were taken */
			if
			:: held[AT(cons + i)] -> k = (cons - N + i) & IM; complete(k)
			:: !held[AT(cons + i)] || !(all) -> skip
			fi;
			i++; k = 0
		}
	od;
	i = 0
}

/* sl_signal_vm for completions */
inline rx_signal()
{
	atomic { run_flush() };
	if
	:: peer && cpub != cpr ->
		cpub = cpr;   /* ctold */
#ifndef BUG_NO_FENCE_SIGNAL
		fence(R);
#endif
		atomic { if :: mem[SLEEP + S] && fd == peer -> ring_bell(S) :: else fi }
	:: else
	fi
}

/* sl_edge_peer_gone: the last words of the dead peer count; link_down */
inline rx_down()
{
	if
	:: peer ->
#ifndef BUG_NO_LAST_WORDS
		do
		:: recv();
			if :: nb == 0 -> break :: else -> work_on(1) fi
		od;
#endif
#if CRASH == 2
		assert(mem[PPAIR] != PAIR(peer, inc) || mem[LAST + AT(cons)] != THERE(cons, peer));   /* nothing pending is lost */
#endif
		work_on(1);
		runn = 0; runs = 0;
		lost = peer;
		publish(R, CPAIR, 0);
		peer = 0; expect = 0
	:: else
	fi
}

inline rx_control()
{
	do
	:: gone[R] ->
		gone[R] = 0;
		if :: peer == 1 -> rx_down() :: else fi
	:: news[R] ->
		atomic { news[R] = 0; pg = page[R] }
		if :: peer && peer != pg -> rx_down() :: else fi;
#ifdef BUG_RELINK
		if :: !peer && pg -> rx_up(pg) :: else fi;
#else
		if :: !peer && pg && pg != lost -> rx_up(pg) :: else fi;
#endif
		if :: pg == 0 -> seen[R] = 1 :: else fi;
		pg = 0
	:: announced[R] ->
		atomic { fd = announced[R]; announced[R] = 0 }
#ifndef BUG_LATE_BELL
		ring_bell(S)
#endif
	:: else -> break
	od
}

proctype Receiver(byte inc)
{
	byte cons, cpr, cpub, runs, runn, peer, lost, nb, i, k, pg, expect;
	byte slot[N], id[N];
	byte fd;
	bit held[N], work, up;

	{
		publish(R, CPAIR, 0);
		post(R, SLEEP + R, 0);
		do
		:: all_done -> break
		:: else ->
			atomic { work = 0; rx_control() };
			recv();                                  /* sl_edge_poll: link_input */
			atomic { if :: nb -> work = 1 :: else fi };
			if :: nb -> work_on(!MAY_WAIT) :: nb == 0 -> work_on(1) fi;
#ifdef BUG_CONS_LATE
			consume();
#endif
			rx_signal();                             /* sl_edge_turn_end */
			if
			:: work
			:: !work ->
				post(R, SLEEP + R, 1);
#ifndef BUG_NO_FENCE_SLEEP
				fence(R);
#endif
				rx_see_up();
				if
#ifndef BUG_NO_RECHECK
				:: peer && up && mem[LAST + AT(cons)] == THERE(cons, peer)
#endif
				:: else ->
					if
					:: bell[R] -> bell[R] = 0
					:: gone[R] || news[R] || announced[R] || all_done
					OR_TIMER
					fi
				fi;
				post(R, SLEEP + R, 0)
			fi
		od;
		goto stop
	} unless { kill[R] };
stop:	dead[R] = 1
}

/* --- the manager and the holder --- */

#define VICTIM (2 - CRASH)         /* CRASH 1: R = 1, 2: S = 0 */
#define LEFT (CRASH - 1)

inline start(seat, inc)
{
	atomic {
		bell[seat] = 0; dead[seat] = 0; kill[seat] = 0;
		if
		:: seat == R -> run Receiver(inc)
		:: seat == S && inc == 1 -> run Sender(1, 1, M)
		:: seat == S && inc == 2 -> run Sender(2, M + 1, M + M2)
		fi
	}
}

init
{
	atomic {
		start(S, 1); start(R, 1);
		page[S] = 1; page[R] = 1;
#if CRASH                          /* the order of these is looked at without a crash, and for the second owner */
		news[S] = 1; news[R] = 1; announced[S] = 1; announced[R] = 1
#endif
	}
#if !CRASH
	news[S] = 1; news[R] = 1;
	announced[S] = 1; announced[R] = 1;
#else
#ifdef BUG_RECLAIM_LIVE           /* slots are taken back from a receiver that still runs */
	gone[LEFT] = 1;
#endif
	if
	:: all_done -> goto end
	:: kill[VICTIM] = 1
	fi;
	dead[VICTIM] && sb[VICTIM].n == 0;              /* a killed process writes nothing any more */
	if :: all_done -> goto end :: else fi;
	/* the holder tells that it left; a page written just before (other weights) may still come after that */
	gone[LEFT] = 1;
	if :: news[LEFT] = 1 :: skip fi;
	seen[LEFT] = 0;
	atomic { page[LEFT] = 0; news[LEFT] = 1 }
#ifndef BUG_SEAT_EARLY
	if :: seen[LEFT] :: all_done -> goto end fi;      /* the seat stays empty until the survivor has forgotten the dead (quiesce) */
#endif
	atomic {
		start(VICTIM, 2);
		page[VICTIM] = 1; news[VICTIM] = 1; page[LEFT] = 2; news[LEFT] = 1;
		announced[LEFT] = 2; announced[VICTIM] = 1
	}
#endif
end:	all_done
}

#ifdef LIVE
ltl live { <> all_done }
#endif
