// Shared by nms.cu and nms_sorted.cu: the IoU test of two boxes, and deciding the 64 rows of a word.
#include "boxes.cuh"

struct Meeting { SCALAR inter, joint; };  // areas

__device__ inline Meeting meeting_of(const Box& a, SCALAR area_a, const Box& b, SCALAR area_b, SCALAR offset) {
    const SCALAR zero = (SCALAR)0;
    const SCALAR width = max(min(a.x2, b.x2) - max(a.x1, b.x1) + offset, zero);
    const SCALAR height = max(min(a.y2, b.y2) - max(a.y1, b.y1) + offset, zero);
    const SCALAR inter = width * height;
    return {inter, area_a + area_b - inter};
}

struct Verdict { bool hit, sure; };

// Far from the threshold a product is compared: the quotient, the product and the slack are each off by less than one part in
// 2^(mantissa), so with 8 parts of slack both give the same result.
__device__ inline Verdict verdict_of(const Meeting& meeting, SCALAR threshold) {
    const SCALAR limit = threshold * meeting.joint, slack = limit * (SCALAR)(sizeof(SCALAR) == 4 ? 4.8e-7 : 8.9e-16);
    const SCALAR least = (SCALAR)(sizeof(SCALAR) == 4 ? 1e-30 : 1e-290);
    const bool hit = meeting.inter > limit + slack;
    return {hit, limit > least && (hit || meeting.inter < limit - slack)};
}

// IoU above (or at) the threshold, exactly as inter / (area + area - inter) rounds.
__device__ inline bool overlaps(const Box& a, SCALAR area_a, const Box& b, SCALAR area_b, SCALAR threshold, SCALAR offset, int inclusive) {
    const Meeting meeting = meeting_of(a, area_a, b, area_b, offset);
    const Verdict verdict = verdict_of(meeting, threshold);
    if (verdict.sure) return verdict.hit;
    const SCALAR quotient = meeting.inter / meeting.joint;  // 0 / 0 is NaN and removes nothing
    return inclusive ? quotient >= threshold : quotient > threshold;
}

// Bit k of the low word is lane k's vote for its row k, bit k of the high word for its row k + 32. Called by all lanes of a warp.
__device__ inline word votes_of(bool low, bool high) {
    return (word)__ballot_sync(0xffffffffu, low) | (word)__ballot_sync(0xffffffffu, high) << 32;
}

// The rows of one word that are kept. Row i survives if no kept earlier row of the word removes it (removers: bits below i). Repeating
// this for all rows at once makes at least one more row final each time, and stops when nothing changes: after as many rounds as the longest
// chain of removals, not 64.
__device__ inline word settle(word alive, word removers_low, word removers_high, int lane) {
    word kept = alive;
    while (true) {
        const bool low = (alive >> lane & 1) && !(kept & removers_low);
        const bool high = (alive >> (lane + 32) & 1) && !(kept & removers_high);
        const word next = votes_of(low, high);
        if (next == kept) return kept;
        kept = next;
    }
}

__device__ inline int ones_below(word bits, int index) { return __popcll(bits & ((1ull << index) - 1)); }

// The first `room` kept rows.
__device__ inline word at_most(word kept, int room, int lane) {
    const bool low_fits = (kept >> lane & 1) && ones_below(kept, lane) < room;
    const bool high_fits = (kept >> (lane + 32) & 1) && ones_below(kept, lane + 32) < room;
    return votes_of(low_fits, high_fits);
}
