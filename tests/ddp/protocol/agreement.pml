/* The agreement of the ranks, as a model for spin: every order in which WORLD ranks can go through STEPS steps.
 *
 * What must hold, and the name under which pan reports it when it does not:
 *   invalid end state      no rank waits for ever
 *   same_collective        the ranks meet in the same collective, in the same order
 *   step_equal             ... and for the same step
 *   plan_equal             every step runs under one plan
 *   weights_equal          wherever ranks meet, all have applied the same steps, none is half applied
 *   gradient_whole         an update has every sample of the effective batch in it, once
 *   verdict_equal          all ranks take the same sequence of (step, action, stop)
 *   saved_what_was_learned the newest checkpoint is that of the step and the weights a rank ends with
 *   end_equal              all ranks end with the same exit code
 *   nobody_waits_for_me    no rank leaves in order while another waits for it
 *   ltl ends               every run comes to its end
 *
 * Which part stands for what:
 *   Rank              one process: train/run.cpp run(), and in it train/loop.cpp Loop::run()
 *   step:             Loop::one_step() reads stop_requested() once, then train/step.cpp Step::run(): guardian_.run(),
 *                     ddp::pack(), communicator_.all_reduce_sum()
 *   guardian          memory/guardian.cpp Guardian::run(), with what Step::commit() adds or leaves out
 *   check_meeting     the two require_equal() at the start of agree() in ddp/agreement.cpp
 *   judge             the rest of agree(): replay(), skip(), add_stop()
 *   update            apply_gradients() in train/step.cpp, called by Step::run() for kApply only
 *   next_plan         Loop::follow(), train/controller.cpp Controller::observe(): memory/planning/decide.cpp escalate()
 *                     after a failure, decide() else
 *   conclude          Loop::run(): what counts as a step, `result.fatal`, "no plan fits", `verdict.stop`; and
 *                     buffers_.start_step() before the next attempt
 *   checkpoint:       Loop::checkpoint(), train/session.cpp Session::write_checkpoint(): rank 0 writes, share_text()
 *                     (ddp/handshake.cpp) tells the others whether it could
 *   pass(DURABLE)     communicator->barrier() in run(); after it rank 0's write_exit()
 *   pass(LAST)        the barrier in ddp/mpi.cpp Mpi::close(), the destructor; after it progress_->finish()
 *   end_all:          the catch blocks of run() and Mpi::abort(): progress_->leave(exit_code)
 *   arrive            Mpi::begin() and the start of a non-blocking collective
 *   await             Mpi::wait(): MPI_Testall says done some time after all have arrived; meanwhile
 *                     Mpi::look_for_lost_peers() may find a peer that is leaving or dead
 *   Operator          signals to any ranks, at any moment: train/stop_request.cpp on_signal()
 *
 * What is left out:
 *   - Numbers. The weights are the set of the steps applied (bit s - 1: step s), which is also their hash; a gradient
 *     is the count of the samples in it; a plan is how far it has been escalated. The real weights are hashed once a
 *     window, here they are compared in every reduction.
 *   - Memory. Any piece may run out of it, under any plan, and any may have values that are not finite.
 *   - The policy is some function of all reports: after retries the plan shrinks, else it grows. Windows and cooldown
 *     only make changes rarer.
 *   - Pieces of a long message, the handshake before step 1 and the evaluation: collectives that all ranks pass alike.
 *   - Resuming: the run starts at step 0.
 *   - Time. Nobody is late for ever, so no wait ends by timeout; and the ranks must leave by themselves, without
 *     abort()'s last means of killing them. All ranks are on one node: over several, only timeouts find a lost peer.
 *   - What a rank does by itself is atomic: from taking a result to the next choice, and from there to its next
 *     arrival. No other rank can see any of it; a signal that comes in between waits for the next step, as it does
 *     after the arrival.
 *   - More than one fault in a run: two ranks that fail differently at once may each leave with their own code.
 *
 * Sizes: WORLD (2 or more), STEPS, SHARE (samples of a rank in a step), PLANS (until no plan fits), CHECKPOINT_EVERY.
 * FAULTS=1 adds one of: a rank is killed at any moment, a rank fails alone, rank 0 cannot write a checkpoint, rank 0
 * cannot write exit.json.
 *
 * Broken on purpose, each by one definition, to show that the properties can fail:
 *   STOPS_ALONE            a rank follows its own stop request before the ranks have agreed
 *   APPLIES_ALONE          a rank updates when nothing failed on itself, whatever the others say
 *   LEAVES_EARLY           a rank leaves before the last barrier
 *   PLANS_ALONE            a rank chooses its next plan from its own report
 *   KEEPS_FAILED_PART      a replay goes on with the gradient of the failed attempt
 *   NEVER_ESCALATES        a replay runs under the plan that has failed
 *   HEARS_NO_STOP          a rank's verdict heeds only its own stop request
 *   LEAVES_UNSAVED         a stop request is followed without a checkpoint
 *   FORGETS_THE_CAUSE      a rank that hears of a peer's end leaves with PEER, not the peer's code (FAULTS=1)
 */

#ifndef WORLD
#define WORLD 2
#endif
#ifndef STEPS
#define STEPS 3
#endif
#ifndef SHARE
#define SHARE 2
#endif
#ifndef PLANS
#define PLANS 3
#endif
#ifndef CHECKPOINT_EVERY
#define CHECKPOINT_EVERY 2
#endif
#ifndef FAULTS
#define FAULTS 0
#endif

#define MOST_SKIPS_IN_ROW 3 /* ddp::kMostSkipsInRow */
#define BIT(rank) (1 << (rank))
#define ALL (BIT(WORLD) - 1)
#define PEERS (ALL - BIT(me))

/* Collectives. */
#define NONE 0
#define REDUCTION 1
#define TROUBLE_SIZES 2 /* share_text(): the sizes */
#define TROUBLE_TEXTS 3 /* share_text(): the texts, only when there are any */
#define DURABLE 4       /* the barrier in run() */
#define LAST 5          /* the barrier of the communicator's destructor */

/* Actions. FATAL is agree() throwing Error(kData). */
#define APPLY 1
#define REPLAY 2
#define SKIP 3
#define FATAL 4

/* Exit codes. GO_ON: none yet. */
#define GO_ON 0
#define DONE 1
#define STOPPED 2
#define DATA 3
#define MEMORY 4
#define CHECKPOINT 5
#define PEER 6
#define ALONE 7 /* whatever ended one rank only */

typedef Report {
  bit failed;
  bit non_finite;
  bit stop_requested;
  bit retried;
  bit trouble;
  byte plan;
  byte weights;
  byte step; /* no slot of the real report; only to check it */
};

/* A rank is at most one collective ahead of another, so two of them can be under way. */
typedef Collective {
  byte kind;
  bool mixed;  /* ranks meet in different collectives: nobody ever gets out */
  byte here;   /* ranks that have arrived */
  byte served; /* ranks that have gone on with the result */
  byte gradient;
  byte verdict; /* of the first rank that judged; only to check it */
  Report slots[WORLD];
};

Collective under_way[2];

/* The progress file. */
byte finished, leaving, dead;
byte exit_code[WORLD];

byte asked; /* ranks that were sent a signal */
byte faults_left = FAULTS;

byte saved_step, saved_weights; /* the newest complete checkpoint */
byte ended_with;                /* exit code of the first rank that ended */

/* Set right before they are asserted, so that pan's message names the property; not part of the state. */
hidden byte same_collective, step_equal, plan_equal, weights_equal, gradient_whole, verdict_equal;
hidden byte saved_what_was_learned, end_equal, nobody_waits_for_me;

#define HERE under_way[turn]

inline may_be_killed() {
  if
  :: faults_left > 0 -> faults_left--; goto killed
  :: true
  fi
}

/* Contributes to the next collective, without waiting. */
inline arrive(what) {
  may_be_killed();
  d_step {
    same_collective = HERE.kind == NONE || HERE.kind == what;
    assert(same_collective);
    HERE.mixed = HERE.mixed || !same_collective;
    HERE.kind = what;
    HERE.here = HERE.here | BIT(me);
    HERE.gradient = HERE.gradient + gradient;
    HERE.slots[me].failed = failed;
    HERE.slots[me].non_finite = non_finite;
    HERE.slots[me].stop_requested = stop_requested;
    HERE.slots[me].retried = retried;
    HERE.slots[me].trouble = trouble;
    HERE.slots[me].plan = plan;
    HERE.slots[me].weights = weights;
    HERE.slots[me].step = steps_done;
  }
}

/* Goes on some time after all have arrived, or gives up because of a peer. */
inline await() {
  if
  :: HERE.here == ALL && !HERE.mixed
  :: ((leaving | dead) & PEERS) != 0 ->
     d_step {
       r = 0;
       do
#ifdef FORGETS_THE_CAUSE
       :: r != me && (leaving & BIT(r)) != 0 -> outcome = PEER; break
#else
       :: r != me && (leaving & BIT(r)) != 0 -> outcome = exit_code[r]; break
#endif
       :: r != me && (dead & BIT(r)) != 0 -> outcome = PEER; break
       :: else -> r++
       od;
       r = 0
     }
     goto end_all
  :: faults_left > 0 -> faults_left--; goto killed
  fi
}

/* Compares what must be equal whenever ranks meet. */
inline check_meeting() {
  r = 1;
  do
  :: r < WORLD ->
     step_equal = HERE.slots[r].step == HERE.slots[0].step;
     assert(step_equal);
     plan_equal = HERE.slots[r].plan == HERE.slots[0].plan;
     assert(plan_equal);
     weights_equal = HERE.slots[r].weights == HERE.slots[0].weights;
     assert(weights_equal);
     r++
  :: else -> break
  od;
  r = 0
}

/* The last rank to leave a collective clears the place for the next but one. */
inline leave_collective() {
  HERE.served = HERE.served | BIT(me);
  if
  :: HERE.served == ALL ->
     HERE.kind = NONE; HERE.here = 0; HERE.served = 0; HERE.gradient = 0; HERE.verdict = 0;
     r = 0;
     do
     :: r < WORLD ->
        HERE.slots[r].failed = 0; HERE.slots[r].non_finite = 0; HERE.slots[r].stop_requested = 0;
        HERE.slots[r].retried = 0; HERE.slots[r].trouble = 0; HERE.slots[r].plan = 0;
        HERE.slots[r].weights = 0; HERE.slots[r].step = 0;
        r++
     :: else -> break
     od;
     r = 0
  :: else
  fi;
  turn = 1 - turn
}

inline pass(what) {
  atomic { arrive(what) }
  atomic {
    await();
    d_step { check_meeting(); leave_collective() }
  }
}

/* All pieces of the share, each attempted under the limit that the last failure left. */
inline guardian() {
  limit = (plan == 0 -> SHARE : 1);
  do
  :: done < SHARE ->
     piece = (limit < SHARE - done -> limit : SHARE - done);
     if
     :: true -> gradient = gradient + piece; done = done + piece
     :: true -> non_finite = 1; done = done + piece /* staging is cleared, nothing is committed */
     :: piece > 1 -> limit = (piece + 1) / 2; retried = 1
     :: piece == 1 -> failed = 1; break
     fi
  :: else -> break
  od;
  limit = 0; piece = 0; done = 0
}

/* What all ranks do about this step: from all reports, the same everywhere. */
inline judge() {
  any_failed = 0; any_non_finite = 0; any_stop = 0; any_retried = 0;
  r = 0;
  do
  :: r < WORLD ->
     any_failed = any_failed | HERE.slots[r].failed;
     any_non_finite = any_non_finite | HERE.slots[r].non_finite;
     any_stop = any_stop | HERE.slots[r].stop_requested;
     any_retried = any_retried | HERE.slots[r].retried;
     r++
  :: else -> break
  od;
  r = 0;
#ifdef HEARS_NO_STOP
  any_stop = stop_requested;
#endif
  if
  :: any_failed -> action = REPLAY
  :: !any_failed && any_non_finite -> skips++; action = (skips < MOST_SKIPS_IN_ROW -> SKIP : FATAL)
  :: else -> skips = 0; action = APPLY
  fi;
  stop = any_stop && action != FATAL;
  verdict_equal = HERE.verdict == 0 || HERE.verdict == 2 * action + stop;
  assert(verdict_equal);
  HERE.verdict = 2 * action + stop;
  sum = HERE.gradient
}

/* The plan of the next attempt or step. PLANS: none fits. */
inline next_plan() {
#ifdef PLANS_ALONE
  any_retried = retried;
#endif
  if
#ifndef NEVER_ESCALATES
  :: action == REPLAY -> plan++
#endif
  :: (action == APPLY || action == SKIP) && any_retried && plan == 0 -> plan = 1
  :: (action == APPLY || action == SKIP) && !any_retried && plan > 0 -> plan--
  :: else
  fi;
  any_failed = 0; any_non_finite = 0; any_stop = 0; any_retried = 0
}

inline update() {
#ifdef APPLIES_ALONE
  if
  :: !failed && !non_finite -> weights = weights | BIT(steps_done)
  :: else
  fi
#else
  if
  :: action == APPLY ->
     gradient_whole = sum == WORLD * SHARE;
     assert(gradient_whole);
     weights = weights | BIT(steps_done)
  :: else
  fi
#endif
}

/* Counts the step. An Error ends the job first, whether or not somebody asked for a stop. */
inline conclude() {
  if
  :: action == APPLY || action == SKIP -> steps_done++
  :: else
  fi;
  if
  :: action == FATAL -> outcome = DATA; skips = 0
  :: action != FATAL && plan == PLANS -> outcome = MEMORY; plan = 0
  :: else -> outcome = (stop -> STOPPED : GO_ON)
  fi;
  /* start_step() at the start of the next attempt */
#ifdef KEEPS_FAILED_PART
  gradient = (action == REPLAY -> gradient : 0);
#else
  gradient = 0;
#endif
  sum = 0; stop = 0; failed = 0; non_finite = 0; stop_requested = 0; retried = 0
}

inline check_end() {
  saved_what_was_learned = outcome > MEMORY || (saved_step == steps_done && saved_weights == weights);
  assert(saved_what_was_learned);
  /* After a kill some ranks may hear of it and others be done already. */
  end_equal = ended_with == GO_ON || ended_with == outcome || dead != 0;
  assert(end_equal);
  ended_with = outcome
}

proctype Rank(byte me) {
  byte steps_done, last_checkpoint, skips, plan, weights; /* the trainer's state; a step counts from 1 */
  byte gradient, sum, limit, piece, done, action, r;
  bit failed, non_finite, stop_requested, retried, trouble, stop, turn;
  bit any_failed, any_non_finite, any_stop, any_retried;
  byte outcome;

step:
  atomic {
    if
    :: steps_done == STEPS -> outcome = DONE; goto checkpoint
    :: else
    fi;
    if
    :: faults_left > 0 -> faults_left--; outcome = ALONE; goto end_all /* loading or computing throws on this rank */
    :: true
    fi;
    stop_requested = (asked & BIT(me)) != 0;
#ifdef STOPS_ALONE
    if
    :: stop_requested -> outcome = STOPPED; goto checkpoint
    :: else
    fi;
#endif
    guardian();
    arrive(REDUCTION)
  }
  atomic {
    await();
    d_step {
      check_meeting();
      judge();
      leave_collective();
      update();
      next_plan();
      conclude()
    }
    if
    :: outcome == GO_ON && (action == REPLAY || steps_done % CHECKPOINT_EVERY != 0) -> action = 0; goto step
    :: else -> action = 0
    fi
  }

checkpoint:
  atomic {
    if
    :: steps_done == last_checkpoint -> goto checkpointed
#ifdef LEAVES_UNSAVED
    :: steps_done != last_checkpoint && outcome == STOPPED -> goto checkpointed
#endif
    :: else
    fi;
    if
    :: me == 0 && faults_left > 0 -> faults_left--; trouble = 1 /* cannot be written */
    :: me == 0 -> may_be_killed(); d_step { saved_step = steps_done; saved_weights = weights }
    :: me != 0
    fi;
    arrive(TROUBLE_SIZES)
  }
  atomic {
    await();
    d_step {
      check_meeting();
      trouble = HERE.slots[0].trouble;
      leave_collective();
      last_checkpoint = steps_done
    }
    if
    :: !trouble -> goto checkpointed
    :: else
    fi
  }
  pass(TROUBLE_TEXTS);
  trouble = 0;
  outcome = CHECKPOINT;

checkpointed:
  if /* one statement for each exit code, so that pan tells when one is never reached */
  :: outcome == GO_ON -> goto step
  :: outcome == DONE -> exit_code[me] = DONE
  :: outcome == STOPPED -> exit_code[me] = STOPPED
  :: else -> goto end_all
  fi;

  pass(DURABLE);
  if
  :: me == 0 && faults_left > 0 -> faults_left--; outcome = ALONE; goto end_all /* exit.json cannot be written */
  :: true
  fi;
#ifdef LEAVES_EARLY
  if
  :: me == WORLD - 1
  :: me != WORLD - 1 -> pass(LAST)
  fi;
#else
  pass(LAST);
#endif
  may_be_killed();
  d_step {
    nobody_waits_for_me = (under_way[0].here == 0 || (under_way[0].here & BIT(me)) != 0) &&
                          (under_way[1].here == 0 || (under_way[1].here & BIT(me)) != 0);
    assert(nobody_waits_for_me);
    check_end();
    finished = finished | BIT(me)
  }
  goto gone;

end_all:
  atomic {
    if
    :: outcome == DATA -> exit_code[me] = DATA
    :: outcome == MEMORY -> exit_code[me] = MEMORY
    :: outcome == CHECKPOINT -> exit_code[me] = CHECKPOINT
    :: outcome == PEER -> exit_code[me] = PEER
    :: outcome == ALONE -> exit_code[me] = ALONE
    fi;
    d_step { check_end(); leaving = leaving | BIT(me) }
  }
  goto gone;

killed:
  dead = dead | BIT(me);

gone:
  skip
}

/* Any ranks are asked to stop, in any order, at any moment, or never. */
active proctype Operator() {
  byte r;
end_asking:
  do
  :: atomic {
       asked != ALL ->
       do /* any rank not asked yet */
       :: (asked & BIT(r)) == 0 -> break
       :: (ALL & ~asked) >= BIT(r + 1) -> r++
       od;
       asked = asked | BIT(r);
       r = 0
     }
  od
}

init {
  byte r;
  atomic {
    do
    :: r < WORLD -> run Rank(r); r++
    :: else -> break
    od
  }
}

ltl ends { <> ((finished | leaving | dead) == ALL) }
