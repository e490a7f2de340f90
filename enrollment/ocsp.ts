import { createHash } from 'node:crypto'
import { serialHex } from '#shared/pki/certificate'
import {
  type CertId,
  type CertStatus,
  encodeOcspFailure,
  type OcspFailure,
  type OcspRequest,
  readOcspRequest,
} from '#shared/pki/ocsp'
import type { Issuer } from './ca/issue.ts'
import { issuerMatcher, type Responder, signOcspResponse } from './ca/ocsp.ts'
import { REASON_CODES } from './ca/revoked-entries.ts'
import type { Registry, RevocationStatus } from './registry/registry.ts'
import type { SigningClock } from './signing-clock.ts'

/** Time from thisUpdate to nextUpdate, ms. */
const VALIDITY_MS = 3_600_000
/** An answer that was signed longer ago is signed anew when it is asked for, ms. */
const RENEW_AFTER_MS = VALIDITY_MS / 2
/** Answers that are kept, some 1 KiB each; those that were signed first go first. */
const MAX_PRESIGNED = 20_000

/** RFC 5280 section 5.3.1; only OCSP says it, CRLs list final revocations. */
const CERTIFICATE_HOLD = 6

export type OcspReply = KeptReply | PassingReply

/** Made for one client, or true at this moment only. */
interface PassingReply {
  /** DER of the OCSPResponse. */
  readonly der: Buffer
  readonly freshness: null
  /** False for one that says only that there is no answer. */
  readonly isAuthoritative: boolean
}

/** The same for everybody who asks the same. */
export interface KeptReply {
  /** DER of the OCSPResponse. */
  readonly der: Buffer
  /** How long others may keep it. */
  readonly freshness: Freshness
}

export interface Freshness {
  /** SHA-256 of the response, hex. */
  readonly tag: string
  /** Ms since 1970, whole seconds. */
  readonly thisUpdate: number
  readonly nextUpdate: number
}

/** Who answers for an issuer. */
export interface IssuerResponder {
  readonly issuer: Issuer
  readonly responder: Responder
}

export interface OcspOptions {
  readonly registry: Pick<Registry, 'revocationStatus' | 'stateMark'>
  readonly responders: readonly IssuerResponder[]
  readonly signingClock: Pick<SigningClock, 'check'>
  now(): number
}

interface Presigned {
  readonly issuer: string
  readonly serial: string
  /** What it says; when the registry says something else, it is of no use. */
  readonly says: string
  readonly signedAt: number
  readonly reply: KeptReply
  /** Of the registry, before it was last found to say the same. */
  mark: string | null
}

interface Answer {
  readonly certId: CertId
  readonly status: CertStatus
}

interface Owner extends IssuerResponder {
  isOurs(id: CertId): boolean
}

interface Asked extends OcspRequest {
  readonly owner: Owner
  readonly key: string
}

/**
 * Answers OCSP requests for the certificates of all device CAs (RFC 6960; RFC 9919 section 3.2). The registry, with its holds, is
 * read before the cache: an answer that was signed before a hold is not given after it.
 */
export class OcspService {
  readonly #options: OcspOptions
  readonly #presigned = new Map<string, Presigned>()
  #owners: readonly Owner[] = []

  constructor(options: OcspOptions) {
    this.#options = options
    this.renew(options.responders)
  }

  /** Ms since 1970: the last valid second of the responder's certificate that ends first. */
  get notAfter(): number {
    return Math.min(...this.#owners.map(({ responder }) => responder.notAfter))
  }

  get presigned(): number {
    return this.#presigned.size
  }

  /** Signs with these certificates from now on; what older ones signed stays valid with them. */
  renew(responders: readonly IssuerResponder[]): void {
    const certificates = (some: readonly IssuerResponder[]) =>
      some.map(({ responder }) => responder.certificate.toString('base64')).join()
    if (certificates(responders) !== certificates(this.#owners)) this.#presigned.clear()
    this.#owners = responders.map((one) => ({ ...one, isOurs: issuerMatcher(one.issuer) }))
  }

  /** What was signed for this very request, when nothing has been written since the registry last said the same. */
  kept(der: Buffer): KeptReply | null {
    const found = this.#fresh(keyOf(der))
    const mark = found?.mark ?? null
    return found !== null && mark !== null && mark === this.#options.registry.stateMark() ? found.reply : null
  }

  /**
   * Answers the first of the readings of a request that makes sense: one that was damaged on its way may have several.
   * @throws MusterError unavailable, clock_wrong
   */
  async answer(readings: readonly Buffer[]): Promise<OcspReply> {
    const [only, ...others] = readings
    const kept = only !== undefined && others.length === 0 ? await this.#kept(keyOf(only)) : null
    return kept ?? this.#answerAnew(readings)
  }

  #fresh(key: string): Presigned | null {
    const found = this.#presigned.get(key)
    const now = this.#options.now()
    return found !== undefined && now >= found.signedAt && now < found.signedAt + RENEW_AFTER_MS
      ? found
      : null
  }

  /** What was signed for this request, while it is fresh and the registry still says the same. */
  async #kept(key: string): Promise<KeptReply | null> {
    const found = this.#fresh(key)
    if (found === null) return null
    const { registry } = this.#options
    const mark = registry.stateMark() // before the status: a commit in between is seen the next time
    const status = await registry.revocationStatus(found.issuer, found.serial)
    if (saysOf(certStatus(status)) !== found.says) return null
    found.mark = mark
    return found.reply
  }

  async #answerAnew(readings: readonly Buffer[]): Promise<OcspReply> {
    const requests = readings.flatMap((der) => {
      const request = readOrNull(der)
      return request ? [{ ...request, key: keyOf(der) }] : []
    })
    if (requests.length === 0) return ocspFailure('malformedRequest')
    const ours = requests.flatMap((request) => {
      const owner = this.#owners.find(({ isOurs }) => request.certIds.every(isOurs))
      return owner ? [{ ...request, owner }] : []
    })
    const [first] = ours
    if (first === undefined) return ocspFailure('unauthorized')
    const known = ours.length === 1 ? first : ((await this.#firstKnown(ours)) ?? first)
    return this.#reply(known)
  }

  async #firstKnown(requests: readonly Asked[]): Promise<Asked | null> {
    for (const request of requests) {
      const statuses = await this.#look(request)
      if (statuses.every((status) => status !== null)) return request
    }
    return null
  }

  #look({ owner, certIds }: Asked): Promise<(RevocationStatus | null)[]> {
    const { registry } = this.#options
    return Promise.all(
      certIds.map(({ serial }) => registry.revocationStatus(owner.issuer.id, serialHex(serial))),
    )
  }

  async #reply(request: Asked): Promise<OcspReply> {
    const statuses = (await this.#look(request)).map(certStatus)
    const [certId, ...others] = request.certIds
    const [status] = statuses
    const isCommon = request.nonce === null && others.length === 0
    // an unknown certificate may be issued in the next moment, and there is no end to them
    if (!isCommon || certId === undefined || status === undefined || status.state === 'unknown') {
      const answers = request.certIds.map((id, index) => ({
        certId: id,
        status: statuses[index] ?? ({ state: 'unknown' } as const),
      }))
      return { der: await this.#sign(request, answers), freshness: null, isAuthoritative: true }
    }
    return this.#common(request, { certId, status })
  }

  /** The answer that is the same for everybody who asks the same; it is kept. */
  async #common(request: Asked, answer: Answer): Promise<OcspReply> {
    const now = this.#options.now()
    const der = await this.#sign(request, [answer])
    const thisUpdate = Math.floor(now / 1000) * 1000
    const tag = createHash('sha256').update(der).digest('hex')
    const reply = { der, freshness: { tag, thisUpdate, nextUpdate: nextUpdateOf(request.owner, thisUpdate) } }
    this.#keep(request.key, {
      issuer: request.owner.issuer.id,
      serial: serialHex(answer.certId.serial),
      says: saysOf(answer.status),
      signedAt: now,
      reply,
      mark: null,
    })
    return reply
  }

  #keep(key: string, presigned: Presigned): void {
    this.#presigned.delete(key)
    this.#presigned.set(key, presigned)
    const [oldest] = this.#presigned.keys()
    if (this.#presigned.size > MAX_PRESIGNED && oldest !== undefined) this.#presigned.delete(oldest)
  }

  #sign({ owner, nonce }: Asked, answers: readonly Answer[]): Promise<Buffer> {
    const now = this.#options.now()
    this.#options.signingClock.check(now)
    const nextUpdate = nextUpdateOf(owner, now)
    return signOcspResponse(owner.responder, { answers, nonce, thisUpdate: now, nextUpdate })
  }
}

/** Not after the certificate of the responder. */
function nextUpdateOf({ responder }: IssuerResponder, thisUpdate: number): number {
  return Math.min(thisUpdate + VALIDITY_MS, responder.notAfter)
}

export function ocspFailure(failure: OcspFailure): OcspReply {
  return { der: encodeOcspFailure(failure), freshness: null, isAuthoritative: false }
}

/** The octets of a request, as a text that a map can hold. */
function keyOf(der: Buffer): string {
  return der.toString('latin1')
}

function saysOf(status: CertStatus): string {
  return status.state === 'revoked' ? `${status.since} ${status.reason}` : status.state
}

function readOrNull(der: Uint8Array): OcspRequest | null {
  try {
    return readOcspRequest(der)
  } catch (error) {
    if (error instanceof SyntaxError) return null
    throw error
  }
}

function certStatus(status: RevocationStatus | null): CertStatus {
  if (status === null) return { state: 'unknown' }
  switch (status.state) {
    case 'good':
      return status
    case 'held':
      return { state: 'revoked', since: status.since, reason: CERTIFICATE_HOLD }
    case 'revoked':
      return { state: 'revoked', since: status.since, reason: REASON_CODES[status.reason] }
  }
}
