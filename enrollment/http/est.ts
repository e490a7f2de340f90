import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { isMusterError, MusterError } from '#shared/errors'
import { type EstOperation, isBatchId } from '#shared/identity/device'
import { encodeCsrAttributes } from '#shared/pki/csr-attributes'
import { pemToDer } from '#shared/pki/pem'
import type { Issued } from '../issuance.ts'
import type { Application } from '../registry/registry.ts'
import { caCertificates, noteAdoption } from '../trust.ts'
import { APPROVAL_RETRY_S, enrollWith, rememberFailure, renewWith } from './api.ts'
import { type Caller, type CallerDeps, identifyDevice, identifyLate, peerOf, whoMayCall } from './caller.ts'
import {
  basicPassword,
  mediaType,
  readBody,
  writeCertificates,
  writeKeyAndCertificate,
} from './est-message.ts'
import { asMusterError, errorHeaders, logFault, STATUS, shownCode } from './problem.ts'
import { channelOf } from './tls-channel.ts'

/** A reply before it is written. Header names go out in exactly this case: libest compares them letter by letter. */
interface EstReply {
  readonly status: number
  readonly headers: Readonly<Record<string, string>>
  readonly body: string
}

interface EstRequest extends CallerDeps {
  readonly request: FastifyRequest
  readonly label: string | null
  /** Set once the TLS client certificate has been accepted, for the record of a refusal. */
  caller: Caller | null
}

interface Operation {
  readonly method: 'GET' | 'POST'
  answer(est: EstRequest): Promise<EstReply>
}

/** RFC 7030 section 3.2.2: every operation with and without a label. */
const OPERATIONS = {
  cacerts: { method: 'GET', answer: cacerts },
  simpleenroll: { method: 'POST', answer: simpleenroll },
  simplereenroll: { method: 'POST', answer: simplereenroll },
  csrattrs: { method: 'GET', answer: csrattrs },
  fullcmc: { method: 'POST', answer: notImplemented },
  serverkeygen: { method: 'POST', answer: serverkeygen },
} as const satisfies Record<EstOperation, Operation>

const PREFIX = '/.well-known/est'

/** EST (RFC 7030, clarified by RFC 8951) with what strongSwan and libest need beyond it. */
export function serveEst(app: FastifyInstance, at: CallerDeps): void {
  void app.register((est, _options, done) => {
    est.removeAllContentTypeParsers()
    est.addContentTypeParser('*', { parseAs: 'buffer' }, (_request, body, done) => done(null, body))
    est.setErrorHandler((error, request, reply) =>
      fail({ ...at, request, label: null, caller: null }, { error, reply }),
    )
    for (const [name, { method, answer }] of Object.entries(OPERATIONS)) {
      for (const url of [`${PREFIX}/${name}`, `${PREFIX}/:label/${name}`]) {
        est.route({
          method,
          url,
          handler: (request, reply) =>
            handle({ ...at, request, label: null, caller: null }, { answer, reply }),
        })
      }
    }
    done()
  })
}

async function handle(
  est: EstRequest,
  to: { answer: Operation['answer']; reply: FastifyReply },
): Promise<FastifyReply> {
  try {
    return write(to.reply, await to.answer({ ...est, label: labelOf(est.request) }))
  } catch (error) {
    return fail(est, { error, reply: to.reply })
  }
}

/** RFC 7030 section 4.1: no authentication, but who has a certificate is counted; the roots and the whole chain. */
async function cacerts(est: EstRequest): Promise<EstReply> {
  const { deps, request } = est
  const caller = await whoMayCall(est, request, identifyDevice)
  if (caller.kind === 'device') await noteAdoption(deps, caller.credential.device.id)
  const pems = caCertificates(deps.authority)
  return certificates(
    pems.map((pem) => pemToDer(pem, 'CERTIFICATE')),
    request,
  )
}

/** RFC 7030 section 4.2.1: the token is the Basic password; without one the TLS client certificate is looked at. */
async function simpleenroll(est: EstRequest): Promise<EstReply> {
  const { request, label, deps, limits } = est
  const token = basicPassword(request.headers.authorization)
  checkType(request)
  const { socket } = request.raw
  const at = { deps, limits, address: request.ip, channel: channelOf(socket), peer: () => peerOf(socket) }
  const enrolled = await enrollWith(at, { token, csr: () => readBody(request.body), label })
  return 'waitsFor' in enrolled ? waiting(enrolled) : issued(enrolled, request)
}

/** RFC 7030 section 4.2.2: the identity is that of the TLS client certificate, whatever the request says. */
async function simplereenroll(est: EstRequest): Promise<EstReply> {
  const { request } = est
  const caller = await identifyLate(est, request)
  est.caller = caller
  checkType(request)
  const renewed = await renewWith(
    { ...est, caller, address: request.ip, channel: channelOf(request.raw.socket) },
    { csr: () => readBody(request.body), names: 'equal' },
  )
  return issued(renewed, request)
}

/**
 * RFC 7030 section 4.4: a key that is made here and leaves with the reply. With the certificate of a device it is a
 * re-enrollment, with anything else that `simpleenroll` takes a first one.
 */
async function serverkeygen(est: EstRequest): Promise<EstReply> {
  const { request, label, deps, limits } = est
  const { socket } = request.raw
  const at = { deps, limits, address: request.ip, channel: channelOf(socket) }
  const asked = { csr: () => readBody(request.body), keyBy: 'plane' } as const
  const token = basicPassword(request.headers.authorization)
  const caller = token === null ? await deviceOf(est) : null
  est.caller = caller
  checkType(request)
  if (caller) return keyed(await renewWith({ ...at, caller }, { ...asked, names: 'equal' }), est)
  const enrolled = await enrollWith({ ...at, peer: () => peerOf(socket) }, { ...asked, token, label })
  return 'waitsFor' in enrolled ? waiting(enrolled) : keyed(enrolled, est)
}

/** Null for a claim and for a certificate of another CA, which may be a manufacturer's. @throws MusterError as `identifyLate` */
async function deviceOf(est: EstRequest): Promise<Caller | null> {
  try {
    return await identifyLate(est, est.request)
  } catch (error) {
    if (isMusterError(error, 'claim', 'unknown_ca')) return null
    throw error
  }
}

function keyed(done: Issued, { request, deps }: EstRequest): EstReply {
  const { privateKey, certificate } = done
  if (privateKey === null) throw new TypeError('a key was asked for and not made')
  const boundary = deps.random(16).toString('hex')
  const { type, body } = writeKeyAndCertificate(
    { privateKey, certificate },
    { boundary, userAgent: request.headers['user-agent'] },
  )
  return {
    status: 200,
    headers: { 'Content-Type': type, 'Cache-Control': 'no-store', ...windowOf(done) },
    body,
  }
}

function issued(done: Issued, request: FastifyRequest): EstReply {
  const reply = certificates([done.certificate], request)
  return { ...reply, headers: { ...reply.headers, ...windowOf(done) } }
}

/** The window for the next certificate, which RFC 7030 has no place for. */
function windowOf({ issuance }: Issued): { 'Muster-Renewal': string } {
  const shown = (at: number) => new Date(at).toISOString()
  return { 'Muster-Renewal': `after=${shown(issuance.renewAfter)}, before=${shown(issuance.renewBefore)}` }
}

/** RFC 7030 section 4.2.3: the client repeats its request after Retry-After. */
function waiting({ device, spki }: Application): EstReply {
  const sentence = `R-PENDING: "${device}" waits for an operator to approve the key ${spki}`
  return text(202, sentence, { 'Retry-After': String(APPROVAL_RETRY_S) })
}

/** RFC 8951 section 4: what requests of the label's fleet should be like; no authentication. */
async function csrattrs({ deps, label }: EstRequest): Promise<EstReply> {
  const { keys, linkedToTls } = await deps.registry.profileFor(label)
  const [key = 'P-256'] = keys // a profile names at least one
  return {
    status: 200,
    headers: { 'Content-Type': 'application/csrattrs', 'Content-Transfer-Encoding': 'base64' },
    body: encodeCsrAttributes({ key, challengePassword: linkedToTls }).toString('base64'),
  }
}

async function notImplemented(): Promise<EstReply> {
  return text(501, 'Cannot do this: the operation is optional in RFC 7030 and not offered here')
}

/** RFC 7030 section 3.2.2: a label names a batch, and is never the name of an operation. @throws MusterError not_found */
function labelOf(request: FastifyRequest): string | null {
  const { label } = request.params as { label?: string } // Fastify fills it from the path
  if (label === undefined) return null
  if (isBatchId(label)) return label
  throw new MusterError('not_found', 'Cannot use the label: it is not the name of a batch')
}

/** @throws MusterError unsupported */
function checkType(request: FastifyRequest): void {
  const type = mediaType(request.headers['content-type'])
  if (type === 'application/pkcs10') return
  throw new MusterError('unsupported', `Cannot read "${type.slice(0, 100)}": send application/pkcs10`)
}

function certificates(ders: readonly Uint8Array[], request: FastifyRequest): EstReply {
  return {
    status: 200,
    headers: {
      'Content-Type': 'application/pkcs7-mime; smime-type=certs-only',
      'Content-Transfer-Encoding': 'base64',
    },
    body: writeCertificates(ders, request.headers['user-agent']),
  }
}

function text(status: number, sentence: string, headers: Readonly<Record<string, string>> = {}): EstReply {
  return {
    status,
    headers: { 'Content-Type': 'text/plain; charset=utf-8', ...headers },
    body: `${sentence}\n`,
  }
}

/** A client's fault is told in a sentence with our code (RFC 7030 section 4.2.3), and remembered. */
async function fail(
  est: EstRequest,
  { error: thrown, reply }: { error: unknown; reply: FastifyReply },
): Promise<FastifyReply> {
  const error = asMusterError(thrown)
  logFault(error, { request: est.request, log: est.deps.log })
  await rememberFailure(est, { error, request: est.request, caller: est.caller })
  const status = STATUS[error.code]
  const challenge = status === 401 ? { 'WWW-Authenticate': 'Basic realm="est"' } : {}
  const ends = status === 413 ? { Connection: 'close' } : {} // the rest of the body is not read
  return write(
    reply,
    text(status, `${shownCode(error.code)}: ${error.message}`, {
      ...errorHeaders(error),
      ...challenge,
      ...ends,
    }),
  )
}

/** On the raw response: Fastify would send the header names in lower case, and Node would chunk. */
function write(reply: FastifyReply, { status, headers, body }: EstReply): FastifyReply {
  reply.hijack()
  const length = status === 204 ? {} : { 'Content-Length': String(Buffer.byteLength(body)) }
  reply.raw.writeHead(status, { ...headers, ...length })
  reply.raw.end(body)
  return reply
}
