import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { MusterError } from '#shared/errors'
import { pemToDer } from '#shared/pki/pem'
import type { Deps } from '../deps.ts'

/** A CRL may be cached for an hour, a CA certificate for a day, s. */
const CRL_MAX_AGE_S = 3_600
const CA_MAX_AGE_S = 86_400

interface Download {
  readonly body: Buffer
  /** Strong: the content is named by it. */
  readonly etag: string
  readonly type: string
  readonly maxAgeS: number
}

/** What certificates point to: CRLs and CA certificates, over plain HTTP, because whoever needs them trusts no TLS yet. */
export function downloads(app: FastifyInstance, deps: Deps): void {
  app.get<{ Params: { file: string } }>('/crl/:file', async (request, reply) =>
    send(reply, { request, download: crl(deps, request.params.file) }),
  )
  app.get<{ Params: { file: string } }>('/ca/:file', async (request, reply) =>
    send(reply, { request, download: caCertificate(deps, request.params.file) }),
  )
}

function crl({ authority, revocationList }: Deps, file: string): Download {
  if (file !== `${authority.device.id}.crl`) throw missing(file)
  const list = revocationList.published
  if (!list) throw new MusterError('unavailable', 'Cannot serve the CRL yet')
  return {
    body: list.der,
    etag: `"crl-${list.number}"`,
    type: 'application/pkix-crl', // RFC 2585 section 4.2
    maxAgeS: CRL_MAX_AGE_S,
  }
}

function caCertificate({ authority }: Deps, file: string): Download {
  const { rootId: id, rootPem: pem, device, infrastructure } = authority
  const issuer = [{ id, pem }, device, infrastructure].find((one) => file === `${one.id}.crt`)
  if (!issuer) throw missing(file)
  return {
    body: pemToDer(issuer.pem, 'CERTIFICATE'),
    etag: `"${issuer.id}"`,
    type: 'application/pkix-cert', // RFC 2585 section 4.1
    maxAgeS: CA_MAX_AGE_S,
  }
}

function send(reply: FastifyReply, { request, download }: { request: FastifyRequest; download: Download }) {
  const { body, etag, type, maxAgeS } = download
  reply.header('etag', etag).header('cache-control', `public, max-age=${maxAgeS}`)
  const known = request.headers['if-none-match']?.split(',').map((one) => one.trim().replace(/^W\//, ''))
  if (known?.includes(etag) || known?.includes('*')) return reply.code(304).send()
  return reply.type(type).send(body)
}

function missing(file: string): MusterError {
  return new MusterError('not_found', `Cannot serve "${file}": there is no such file`)
}
