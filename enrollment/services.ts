import { MusterError } from '#shared/errors'
import { isDeviceId } from '#shared/identity/device'
import { checkCsr } from './ca/check-csr.ts'
import type { Deps } from './deps.ts'
import { completed, type Issued, newSerial, signNow } from './issuance.ts'
import type { Actor } from './registry/registry.ts'

export interface NewService {
  readonly id: string
  /** PKCS#10, DER. Only its key is used. */
  readonly csr: Uint8Array
  readonly by: Actor
}

/**
 * A certificate for a back-end application; an operator vouches for its name, so the names in the CSR do not matter.
 * @throws MusterError invalid_request (the id), csr_*, id_taken, held, clock_wrong
 */
export async function createService(deps: Deps, request: NewService): Promise<Issued> {
  // 1 check the request
  if (!isDeviceId(request.id)) {
    throw new MusterError('invalid_request', `Cannot make the service "${request.id}": the name is reserved`)
  }
  const csr = await checkCsr(request.csr, deps.caKeys)
  const now = deps.now()
  deps.signingClock.check(now)
  deps.reached('service.1')

  // 2 record what will be signed; a key in memory signs in the same commit
  const signing = { recipe: 'service', spki: csr.spki } as const
  const issuance = await deps.registry.beginService(
    {
      now,
      by: request.by,
      id: request.id,
      spkiHash: csr.spkiHash,
      serial: newSerial(deps),
      issuer: deps.authority.device,
    },
    signNow(deps, signing),
  )

  // 3 sign and 4 record the certificate, where that is still to do; from here on brokers know it
  const certificate = await completed(deps, { issuance, signing, by: request.by })
  deps.reached('service.4')

  // 5 answer
  return { issuance, certificate, privateKey: null }
}
