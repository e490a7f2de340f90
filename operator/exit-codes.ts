import type { ErrorCode } from '#shared/errors'

/** What a script can tell from the status; documented in README.md and docs/operations.md. */
export const EXIT = {
  ok: 0,
  /** A fault in Muster itself, or one that it has no word for. */
  fault: 1,
  usage: 2,
  notFound: 3,
  denied: 4,
  conflict: 5,
  /** Done here, and not yet everywhere: the output names where. */
  partly: 6,
  unreachable: 7,
  checkFailed: 8,
} as const
export type ExitCode = (typeof EXIT)[keyof typeof EXIT]

/** A new error code does not compile until it has a status. */
const EXIT_OF = {
  invalid_request: EXIT.usage,
  too_large: EXIT.usage,
  unsupported: EXIT.usage,
  config_invalid: EXIT.usage,
  csr_malformed: EXIT.usage,
  csr_key: EXIT.usage,
  csr_subject: EXIT.usage,
  csr_pop: EXIT.usage,
  csr_link: EXIT.usage,
  server_key: EXIT.denied,
  not_found: EXIT.notFound,
  unauthenticated: EXIT.denied,
  forbidden: EXIT.denied,
  passphrase_wrong: EXIT.denied,
  tls: EXIT.denied,
  nocert: EXIT.denied,
  unknown_ca: EXIT.denied,
  profile: EXIT.denied,
  claim: EXIT.denied,
  expired: EXIT.denied,
  notyet: EXIT.denied,
  unrecorded: EXIT.denied,
  held: EXIT.denied,
  revoked: EXIT.denied,
  superseded: EXIT.denied,
  pending: EXIT.denied,
  retired: EXIT.denied,
  stale: EXIT.denied,
  idmismatch: EXIT.denied,
  factor: EXIT.denied,
  duplicate: EXIT.denied,
  clone: EXIT.denied,
  rate: EXIT.denied,
  policy_pub: EXIT.denied,
  policy_sub: EXIT.denied,
  will: EXIT.denied,
  quota: EXIT.denied,
  packet: EXIT.denied,
  token_unknown: EXIT.denied,
  token_spent: EXIT.denied,
  token_expired: EXIT.denied,
  token_cancelled: EXIT.denied,
  token_batch: EXIT.denied,
  token_tombstone: EXIT.denied,
  idevid: EXIT.denied,
  idevid_unlisted: EXIT.denied,
  rejected: EXIT.denied,
  successors: EXIT.denied,
  conflict: EXIT.conflict,
  undo_over: EXIT.conflict,
  count_mismatch: EXIT.conflict,
  id_taken: EXIT.conflict,
  idevid_used: EXIT.conflict,
  directory_in_use: EXIT.conflict,
  port_taken: EXIT.conflict,
  unavailable: EXIT.unreachable,
  unreachable: EXIT.unreachable,
  directory_unusable: EXIT.checkFailed,
  key_file_insecure: EXIT.checkFailed,
  clock_wrong: EXIT.checkFailed,
  lint_failed: EXIT.checkFailed,
  check_failed: EXIT.checkFailed,
  internal: EXIT.fault,
} as const satisfies Record<ErrorCode, ExitCode>

/** The status for an error; a code that a newer server sends and this version does not know is a fault. */
export function exitCodeOf(code: ErrorCode): ExitCode {
  return Object.hasOwn(EXIT_OF, code) ? EXIT_OF[code] : EXIT.fault
}
