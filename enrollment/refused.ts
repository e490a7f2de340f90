import type { MusterError } from '#shared/errors'
import { isRefusalErrorCode } from '#shared/refusals'
import type { Deps } from './deps.ts'

export interface Refused {
  readonly error: MusterError
  /** As far as it is known. */
  readonly device: string | null
  readonly fingerprint: string | null
  readonly address: string
}

/** Remembers that somebody was turned away, for `explain`. A registry that cannot remember does not change the answer. */
export async function rememberRefusal(deps: Deps, refused: Refused): Promise<void> {
  const { code, evidence } = refused.error
  if (!isRefusalErrorCode(code)) return
  const { device: named } = evidence
  const device = refused.device ?? (typeof named === 'string' ? named : null)
  const { fingerprint, address } = refused
  deps.log.info({ code, device, fingerprint, address, evidence }, 'refused')
  try {
    await deps.registry.recordRefusal({ now: deps.now(), code, evidence, device, fingerprint, address })
  } catch (error) {
    deps.log.error({ err: error }, 'refusal not recorded')
  }
}
