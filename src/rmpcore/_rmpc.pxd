# Declarations of the C core for Cython; include/rmpcore/ says what each means.

from libc.stddef cimport size_t
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "rmpcore/rmpcore.h" nogil:
    enum rmpc_status:
        RMPC_OK
        RMPC_ERR_FULL
    const char *rmpc_status_text(rmpc_status status)

    ctypedef bint c_bool "bool"

    uint64_t RMPC_PAGE_SIZE
    uint64_t RMPC_REGION_FRAMES
    uint64_t RMPC_HIGH_MAP
    uint64_t RMPC_HIGH_SIZE
    uint64_t RMPC_PTE_ADDRESS

    struct rmpc_event:
        uint16_t kind
        uint8_t level
        uint8_t reserved
        int32_t code
        uint64_t a
        uint64_t b
        uint64_t c
    struct rmpc_events:
        void (*report)(void *user, const rmpc_event *event) noexcept
        void *user

    struct rmpc_extent:
        uint64_t base
        uint64_t size
    struct rmpc_range:
        uint64_t base
        uint64_t size
        void *host
    struct rmpc_mem:
        const rmpc_range *ranges
        size_t count
        uint64_t (*alloc)(void *user) noexcept
        void (*free)(void *user, uint64_t pa) noexcept
        void *user
        uint64_t fail_skip
        uint64_t fail_count
    rmpc_status rmpc_extents_check(const rmpc_extent *extents, size_t count)
    struct rmpc_pool:
        const rmpc_mem *mem
        const rmpc_extent *memory
        size_t memory_count
        const rmpc_extent *reserved
        size_t reserved_count
        const uint64_t *busy
        size_t busy_count
        uint64_t next
    void rmpc_pool_init(rmpc_pool *pool)
    uint64_t rmpc_pool_alloc(void *user) noexcept
    void rmpc_pool_free(void *user, uint64_t pa) noexcept

    struct rmpc_rmp_entry:
        uint64_t lo
        uint64_t hi
    struct rmpc_hardware:
        uint32_t gpa_bits
        uint32_t vmpl0_all
        uint32_t rmpread
        uint32_t overlap_inner
        uint32_t psmash_unassigned
        uint32_t psmash_immutable
        uint32_t keep_same
        uint32_t reserved_input
        uint32_t asid_limit
        uint32_t lock_follows_immutable
        uint32_t subpage_count
    enum rmpc_part:
        RMPC_PART_MILAN
        RMPC_PART_GENOA
    rmpc_status rmpc_hardware_init(rmpc_hardware *hardware, rmpc_part part)
    rmpc_status rmpc_hardware_check(const rmpc_hardware *hardware)
    struct rmpc_inject_run:
        uint32_t code
        uint64_t count
    struct rmpc_inject:
        rmpc_inject_run runs[64]
        size_t count
    struct rmpc_rmp_counters:
        uint64_t rmpupdate
        uint64_t psmash
        uint64_t rmpread
    struct rmpc_rmp:
        uint64_t frames
        rmpc_rmp_entry *entries
        rmpc_inject inject
        rmpc_rmp_counters counters
    rmpc_status rmpc_rmp_probe(uint64_t base, uint64_t end, uint64_t max_pfn)
    size_t rmpc_rmp_touched_words(uint64_t base, uint64_t end)
    rmpc_status rmpc_rmp_init(rmpc_rmp *rmp, const rmpc_mem *mem, uint64_t base, uint64_t end, uint64_t c_bit,
                              const rmpc_hardware *hardware, uint64_t *touched, const rmpc_events *events)
    rmpc_status rmpc_rmp_get(const rmpc_rmp *rmp, uint64_t pfn, rmpc_rmp_entry *out)
    rmpc_status rmpc_rmp_set(rmpc_rmp *rmp, uint64_t pfn, rmpc_rmp_entry entry)
    uint64_t rmpc_rmp_next_used(const rmpc_rmp *rmp, uint64_t pfn)
    rmpc_status rmpc_rmp_inject(rmpc_rmp *rmp, uint64_t code, uint64_t count)

    struct rmpc_kernel:
        int major
        int minor
    rmpc_status rmpc_kernel_init(rmpc_kernel *kernel, int major, int minor)

    struct rmpc_e820:
        uint64_t base
        uint64_t size
        uint32_t type
    struct rmpc_frames:
        uint64_t start
        uint64_t end
    struct rmpc_image:
        uint64_t text
        uint64_t etext
        uint64_t start_rodata
        uint64_t end_rodata
        uint64_t brk_end
        uint64_t phys_base
    struct rmpc_dmap_config:
        int levels
        int large_level
        uint64_t page_offset
        uint64_t supported_mask
        uint64_t default_mask
        uint64_t c_bit
        uint64_t cache_modes[6]
        rmpc_image image
        rmpc_kernel kernel
    struct rmpc_dmap_counters:
        uint64_t pages[4]
        uint64_t splits[4]
        uint64_t collapses[4]
        uint64_t flush_all
        uint64_t flush_pages
        uint64_t flush_cache
        uint64_t flush_cache_all
        uint64_t table_pages
    struct rmpc_dmap:
        rmpc_dmap_config config
        uint64_t root
        rmpc_frames *mapped
        size_t mapped_count
        uint64_t max_pfn_mapped
        bint kernel_readonly
        rmpc_dmap_counters counters
        uint64_t page_total
    struct rmpc_boot_memory:
        const rmpc_extent *memory
        size_t memory_count
        const rmpc_extent *reserved
        size_t reserved_count
        const rmpc_e820 *e820
        size_t e820_count
        uint64_t max_pfn
    uint64_t rmpc_level_size(int level)
    uint64_t rmpc_dmap_limit(const rmpc_dmap *dmap)
    rmpc_status rmpc_dmap_init(rmpc_dmap *dmap, rmpc_mem *mem, const rmpc_dmap_config *config, rmpc_frames *mapped,
                               size_t mapped_room, const rmpc_events *events)
    rmpc_status rmpc_dmap_boot(rmpc_dmap *dmap, const rmpc_boot_memory *boot)
    rmpc_status rmpc_dmap_add_mapped(rmpc_dmap *dmap, uint64_t start, uint64_t end)
    rmpc_status rmpc_dmap_put_root(rmpc_dmap *dmap, uint64_t root)
    rmpc_status rmpc_dmap_put_table(rmpc_dmap *dmap, uint64_t va, int level, uint64_t raw)
    rmpc_status rmpc_dmap_put_leaf(rmpc_dmap *dmap, uint64_t va, int level, uint64_t raw)
    rmpc_status rmpc_dmap_put_high_path(rmpc_dmap *dmap)
    struct rmpc_dmap_entry:
        uint64_t va
        uint64_t raw
        int level
        bint table
    void rmpc_dmap_list(const rmpc_dmap *dmap, uint64_t va, uint64_t size, int top_level,
                        c_bool (*report)(void *user, const rmpc_dmap_entry *entry) noexcept, void *user)

    uint64_t rmpc_dmap_page_total(const rmpc_dmap_counters *counters)
    enum rmpc_invariant:
        RMPC_INVARIANTS_HOLD
    rmpc_invariant rmpc_dmap_validate(const rmpc_dmap *dmap, uint64_t *scratch, size_t room, uint64_t *where)
    const char *rmpc_invariant_name(rmpc_invariant invariant)

    struct rmpc_host:
        rmpc_dmap *dmap
        rmpc_rmp *rmp
        const rmpc_extent *memory
        size_t memory_count
        uint64_t leaked_pages
        uint64_t retries
        const rmpc_events *events

    struct rmpc_op:
        uint16_t op
        uint8_t level
        uint8_t flags
        uint32_t id
        uint64_t addr
        uint64_t gpa
        uint64_t count
    struct rmpc_result:
        int32_t ret
        uint8_t kind
        uint8_t level
        uint8_t flags
        uint8_t reserved
        uint64_t value
        uint64_t value2
    struct rmpc_machine:
        rmpc_mem *mem
        rmpc_host host
        uint64_t addresses[1024]
        size_t address_count
    const char *rmpc_op_name(unsigned op)
    unsigned rmpc_op_flags(unsigned op)
    void rmpc_machine_apply(rmpc_machine *machine, const rmpc_op *op, rmpc_result *result)
    void rmpc_machine_run(rmpc_machine *machine, const rmpc_op *ops, size_t count, rmpc_result *results)

cdef extern from "rmpcore/sparse.h" nogil:
    rmpc_status rmpc_sparse_map(rmpc_range *range, c_bool dense)
    void rmpc_sparse_unmap(rmpc_range *range)
