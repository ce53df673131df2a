/* One pool of threads per process.

   The items of a loop are claimed one by one, so that a worker which the system suspends delays no
   other. The caller and the workers draw tickets from one atomic number:

     | generation of the loop, 16 bits | its number of items, 24 bits | next item, 24 bits |

   The generation in the ticket stops a late worker from claiming items of the next loop. */

typedef void Work(void *task, int item);

static struct {
    pthread_mutex_t busy, lock;
    pthread_cond_t wake;
    _Atomic uint64_t ticket;
    _Atomic int done, sleepers, limit;
    int workers;
    Work *work;
    void *task;
} pool = {.busy = PTHREAD_MUTEX_INITIALIZER,
          .lock = PTHREAD_MUTEX_INITIALIZER,
          .wake = PTHREAD_COND_INITIALIZER};

#define TICKET_BITS 24 /* bits of a ticket's item fields */
#define GENERATION(ticket) ((ticket) >> 2 * TICKET_BITS)

static void pool_claim_items(void) {
    const uint64_t field = (1 << TICKET_BITS) - 1;
    for (;;) {
        uint64_t ticket = atomic_fetch_add(&pool.ticket, 1);
        uint64_t item = ticket & field;
        if (item >= (ticket >> TICKET_BITS & field)) return;
        pool.work(pool.task, (int)item);
        atomic_fetch_add(&pool.done, 1);
    }
}

static void *pool_worker(void *argument) {
    int number = (int)(intptr_t)argument;
    uint64_t seen = 0;
    for (;;) {
        int spins = 0;
        while (spins < SPINS && GENERATION(pool.ticket) == seen) spins++, PAUSE();
        if (spins == SPINS || number >= pool.limit) {
            pthread_mutex_lock(&pool.lock);
            for (;;) {
                int wanted = number < pool.limit;
                pool.sleepers += wanted; /* before reading the ticket: `pool_run` reverses it */
                int ready = wanted && GENERATION(pool.ticket) != seen;
                if (!ready) pthread_cond_wait(&pool.wake, &pool.lock);
                pool.sleepers -= wanted;
                if (ready) break;
            }
            pthread_mutex_unlock(&pool.lock);
        }
        seen = GENERATION(pool.ticket);
        pool_claim_items();
    }
    return NULL;
}

static void pool_after_fork(void) { /* threads are not inherited */
    pthread_mutex_init(&pool.busy, NULL);
    pthread_mutex_init(&pool.lock, NULL);
    pthread_cond_init(&pool.wake, NULL);
    pool.workers = pool.sleepers = pool.limit = 0;
    pool.ticket = GENERATION(pool.ticket) << 2 * TICKET_BITS; /* the parent's loop is void */
}

/* How many threads the caller may use until `pool_release`: 1 if another caller has the pool. */
static int pool_acquire(int threads) {
    if (threads < 2 || pthread_mutex_trylock(&pool.busy)) return 1;
    static int prepared;
    if (!prepared) prepared = 1, pthread_atfork(NULL, NULL, pool_after_fork);
    sigset_t all, before; /* the program's own threads handle signals */
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    while (pool.workers < threads - 1 && pool.workers < MAX_WORKERS) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, pool_worker, (void *)(intptr_t)pool.workers)) break;
        pthread_detach(thread);
        pool.workers++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (pool.limit != threads - 1) {
        pthread_mutex_lock(&pool.lock);
        pool.limit = threads - 1;
        pthread_cond_broadcast(&pool.wake);
        pthread_mutex_unlock(&pool.lock);
    }
    return threads;
}

static void pool_release(int threads) {
    if (threads > 1) pthread_mutex_unlock(&pool.busy);
}

/* Calls `work` for items 0 to `items` - 1, in any order. */
static void pool_run(int threads, int items, Work *work, void *task) {
    if (threads == 1 || items < 2) {
        for (int i = 0; i < items; i++) work(task, i);
        return;
    }
    pool.work = work;
    pool.task = task;
    pool.done = 0;
    pool.ticket = (GENERATION(pool.ticket) + 1) << 2 * TICKET_BITS | (uint64_t)items << TICKET_BITS;
    if (pool.sleepers) {
        pthread_mutex_lock(&pool.lock);
        pthread_cond_broadcast(&pool.wake);
        pthread_mutex_unlock(&pool.lock);
    }
    pool_claim_items();
    for (int spins = 0; pool.done < items; spins++) {
        if (spins < SPINS) PAUSE();
        else sched_yield();
    }
}
