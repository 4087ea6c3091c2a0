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
    rmpc_status rmpc_mem_write(const rmpc_mem *mem, uint64_t pa, const void *data, size_t size)
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
        uint32_t rmpquery
        uint32_t inuse_first
        uint32_t pvalidate_vmpl
        uint32_t rescind_resets
        uint32_t rmpquery_vmpl
        uint32_t bookkeeping
        uint32_t segmented
        uint32_t segment_min
        uint32_t segment_max
        uint32_t segment_cached
        uint32_t segment_limit
        uint32_t segment_unit
        uint32_t vmpls
        uint32_t vmpl_sss
        uint32_t hv_in_use_wr
    enum rmpc_part:
        RMPC_PART_MILAN
        RMPC_PART_GENOA
        RMPC_PART_TURIN
    rmpc_status rmpc_hardware_init(rmpc_hardware *hardware, rmpc_part part)
    rmpc_status rmpc_hardware_check(const rmpc_hardware *hardware)
    struct rmpc_kernel:
        int major
        int minor
        c_bool rmp_end_blocks
        c_bool rmp_end_reserved
        c_bool segmented_rmp
    rmpc_status rmpc_kernel_init(rmpc_kernel *kernel, int major, int minor)

    struct rmpc_rmp_msrs:
        uint64_t base
        uint64_t end
        uint64_t cfg
    struct rmpc_rmp_segment:
        uint64_t frames
    struct rmpc_in_use:
        uint64_t vmcb
        uint64_t vmsa
        uint64_t avic
    struct rmpc_rmp:
        uint64_t frames
        uint64_t *bookkeeping
        rmpc_hardware hardware
        rmpc_in_use in_use[64]
        size_t in_use_count
    struct rmpc_rmp_room:
        size_t segments
        size_t words
    rmpc_status rmpc_rmp_probe(const rmpc_rmp_msrs *msrs, const rmpc_mem *mem, const rmpc_hardware *hardware,
                               const rmpc_kernel *kernel, uint64_t max_pfn)
    rmpc_status rmpc_rmp_measure(const rmpc_rmp_msrs *msrs, const rmpc_mem *mem, const rmpc_hardware *hardware,
                                 rmpc_rmp_room *room)
    rmpc_status rmpc_rmp_init(rmpc_rmp *rmp, const rmpc_rmp_msrs *msrs, const rmpc_mem *mem,
                              const rmpc_hardware *hardware, uint64_t c_bit, rmpc_rmp_segment *segments,
                              uint32_t *words)
    rmpc_status rmpc_rmp_get(const rmpc_rmp *rmp, uint64_t pfn, rmpc_rmp_entry *out)
    rmpc_status rmpc_rmp_set(rmpc_rmp *rmp, uint64_t pfn, rmpc_rmp_entry entry)
    void rmpc_rmp_recount(rmpc_rmp *rmp)
    uint64_t rmpc_rmp_next_used(const rmpc_rmp *rmp, uint64_t pfn)

    struct rmpc_outcome:
        uint32_t code
        uint8_t kind
        uint8_t reason
        c_bool cf
        uint64_t info
        uint64_t address
    struct rmpc_inject_run:
        uint32_t code
        uint64_t count
    struct rmpc_inject:
        rmpc_inject_run runs[64]
        size_t count
    struct rmpc_insn_counters:
        uint64_t rmpupdate
        uint64_t psmash
        uint64_t rmpread
        uint64_t pvalidate
        uint64_t rmpadjust
        uint64_t rmpquery
    struct rmpc_mode:
        uint32_t asid
        uint8_t vmpl
        c_bool user
        c_bool snp
    struct rmpc_cpu:
        rmpc_mode mode
        rmpc_insn_counters counters
        rmpc_inject inject
        const rmpc_events *events
    rmpc_status rmpc_cpu_inject(rmpc_cpu *cpu, uint64_t code, uint64_t count)
    rmpc_status rmpc_in_use_add(rmpc_rmp *rmp, rmpc_in_use pages)

    struct rmpc_context:
        uint64_t pfn
        uint64_t asid
    struct rmpc_record:
        uint64_t address
        uint64_t context
        uint64_t info
        uint64_t gpa
        uint64_t hi
    struct rmpc_firmware:
        rmpc_rmp *rmp
        const rmpc_extent *dram
        size_t dram_count
        const rmpc_events *events
        c_bool ready
        rmpc_context contexts[1024]
        size_t context_count
        rmpc_record records[1024]
        size_t record_count
    rmpc_status rmpc_firmware_add_context(rmpc_firmware *firmware, rmpc_context context)
    rmpc_status rmpc_firmware_add_record(rmpc_firmware *firmware, rmpc_record record)

    struct rmpc_rmp_state:
        uint64_t gpa
        uint64_t high
    struct rmpc_page:
        uint64_t pa
        uint64_t gpa
        int level
    enum rmpc_insn:
        RMPC_INSN_NONE
    struct rmpc_decoded:
        rmpc_insn insn
        unsigned length
    struct rmpc_registers:
        uint64_t rax
        uint64_t rcx
        uint64_t rdx
        uint64_t rip
        uint64_t rflags
    struct rmpc_memory:
        c_bool (*read)(void *user, uint64_t va, rmpc_rmp_state *out, uint64_t *error) noexcept
        c_bool (*write)(void *user, uint64_t va, const rmpc_rmp_state *data, uint64_t *error) noexcept
        c_bool (*translate)(void *user, uint64_t va, rmpc_page *page, uint64_t *error) noexcept
        void *user
    enum rmpc_cpu_mode:
        RMPC_MODE_LONG
        RMPC_MODE_PROTECTED
        RMPC_MODE_REAL
    rmpc_outcome rmpc_insn_execute(rmpc_rmp *rmp, rmpc_cpu *cpu, rmpc_cpu_mode mode, const uint8_t *bytes, size_t size,
                                   rmpc_registers *registers, const rmpc_memory *memory, rmpc_decoded *decoded)

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

    struct rmpc_census:
        uint64_t leaves[4]
        uint64_t missing
    void rmpc_dmap_census(const rmpc_dmap *dmap, rmpc_census *census)
    uint64_t rmpc_dmap_page_total(const rmpc_dmap_counters *counters)
    enum rmpc_invariant:
        RMPC_INVARIANTS_HOLD
    rmpc_invariant rmpc_dmap_validate(const rmpc_dmap *dmap, uint64_t *scratch, size_t room, uint64_t *where)
    const char *rmpc_invariant_name(rmpc_invariant invariant)

    enum rmpc_policy:
        RMPC_POLICY_MAP_4K
        RMPC_POLICY_END
    struct rmpc_host_counters:
        uint64_t accesses
        uint64_t faults_owner
        uint64_t faults_neighbour
        uint64_t repairs
        uint64_t forced_shared
        uint64_t windows
    struct rmpc_host:
        rmpc_dmap *dmap
        rmpc_rmp *rmp
        rmpc_cpu *cpu
        rmpc_firmware *firmware
        const rmpc_extent *memory
        size_t memory_count
        rmpc_policy policy
        uint64_t leaked_pages
        uint64_t retries
        rmpc_host_counters counters
        const rmpc_events *events
    const char *rmpc_policy_name(unsigned policy)
    size_t rmpc_rmp_end_blocks(const rmpc_rmp *rmp, const rmpc_extent *usable, size_t count, rmpc_extent *blocks,
                               size_t room)

    struct rmpc_op:
        uint16_t op
        uint8_t level
        uint8_t flags
        uint32_t id
        uint64_t addr
        uint64_t gpa
        uint64_t count
        uint64_t va
        uint64_t rcx
        uint64_t rdx
        uint32_t mode
        uint32_t reserved
    struct rmpc_result:
        int32_t ret
        uint8_t kind
        uint8_t level
        uint8_t flags
        uint8_t reason
        uint64_t value
        uint64_t value2
    struct rmpc_machine:
        rmpc_mem *mem
        rmpc_host host
        uint64_t addresses[1024]
        size_t address_count
    const char *rmpc_op_name(unsigned op)
    unsigned rmpc_op_flags(unsigned op)
    uint32_t rmpc_op_mode(unsigned op)
    void rmpc_result_of(rmpc_outcome outcome, rmpc_result *result)
    void rmpc_machine_apply(rmpc_machine *machine, const rmpc_op *op, rmpc_result *result)
    void rmpc_machine_run(rmpc_machine *machine, const rmpc_op *ops, size_t count, rmpc_result *results)

cdef extern from "rmpcore/sparse.h" nogil:
    rmpc_status rmpc_sparse_map(rmpc_range *range, c_bool dense)
    void rmpc_sparse_unmap(rmpc_range *range)
