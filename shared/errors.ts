/**
 * Codes of the refusals: a device was turned away, at the enrollment service or at a broker.
 * Each has a row in `refusals.ts` (text, evidence, fix), where it is written `R-…`.
 */
export type RefusalErrorCode =
  | 'tls'
  | 'nocert'
  | 'unknown_ca'
  | 'profile'
  | 'claim'
  | 'expired'
  | 'notyet'
  | 'unrecorded'
  | 'held'
  | 'revoked'
  | 'superseded'
  | 'pending'
  | 'retired'
  | 'stale'
  | 'idmismatch'
  | 'factor'
  | 'duplicate'
  | 'clone'
  | 'rate'
  | 'policy_pub'
  | 'policy_sub'
  | 'will'
  | 'quota'
  | 'packet'
  | 'token_unknown'
  | 'token_spent'
  | 'token_expired'
  | 'token_cancelled'
  | 'token_batch'
  | 'token_tombstone'
  | 'idevid'
  | 'idevid_unlisted'
  | 'idevid_used'
  | 'id_taken'
  | 'rejected'
  | 'successors'
  | 'csr_malformed'
  | 'csr_key'
  | 'csr_subject'
  | 'csr_pop'
  | 'csr_link'
  | 'server_key'

/** Codes of everything else that a caller can act on. */
export type OperationErrorCode =
  | 'invalid_request'
  | 'unauthenticated'
  | 'forbidden'
  | 'not_found'
  | 'conflict'
  | 'too_large'
  | 'unsupported'
  | 'undo_over'
  | 'count_mismatch'
  | 'unavailable'
  | 'unreachable'
  | 'internal'
  | 'config_invalid'
  | 'directory_unusable'
  | 'directory_in_use'
  | 'key_file_insecure'
  | 'passphrase_wrong'
  | 'port_taken'
  | 'clock_wrong'
  | 'lint_failed'
  | 'check_failed'

export type ErrorCode = RefusalErrorCode | OperationErrorCode

/** What was seen when an error was raised: short values that are safe to show to an operator; never a secret. */
export type Evidence = Readonly<Record<string, string | number | boolean>>

export interface MusterErrorOptions {
  cause?: unknown
  evidence?: Evidence
}

/** An error that a caller can act on. The code is the contract, the message is for people. */
export class MusterError extends Error {
  readonly code: ErrorCode
  readonly evidence: Evidence

  constructor(code: ErrorCode, message: string, options: MusterErrorOptions = {}) {
    super(message, 'cause' in options ? { cause: options.cause } : {})
    this.name = 'MusterError'
    this.code = code
    this.evidence = options.evidence ?? {}
  }
}

/** True when `error` is ours and carries one of `codes` (any of ours when none is named). */
export function isMusterError(error: unknown, ...codes: ErrorCode[]): error is MusterError {
  return error instanceof MusterError && (codes.length === 0 || codes.includes(error.code))
}
