import { X509Certificate } from 'node:crypto'
import { existsSync, readFileSync, renameSync, rmSync } from 'node:fs'
import { isIP } from 'node:net'
import { join } from 'node:path'
import { Compile } from 'typebox/compile'
import { type BrokerCertificateReply, Invitation } from '#shared/api'
import { MusterError } from '#shared/errors'
import { readSecretFile, syncDirectory, writeFileDurably, writeSecretFile } from '#shared/files'
import type { JsonClient } from '#shared/json-client'
import { generateKey, privateKeyPem, readPrivateKey } from '#shared/pki/keys'
import { splitPem } from '#shared/pki/pem'
import { createCsr } from '#shared/pki/x509'

/** What a broker is: its certificate serves its clients and opens the admin listener of the registry. */
export interface Credential {
  readonly broker: string
  readonly trustDomain: string
  /** Base URL of the admin listener. */
  readonly url: string
  /** Root certificates, PEM: two while one root follows another. */
  readonly ca: string
  /** Leaf, infrastructure CA, and what links a new root to the one before it, PEM. */
  readonly certificate: string
  /** PKCS#8 PEM. */
  readonly key: string
  readonly notBefore: number
  readonly notAfter: number
}

/** From this share of its life on the certificate is renewed. */
const RENEW_AT = 2 / 3

const invitationSchema = Compile(Invitation)

interface Names {
  readonly broker: string
  readonly trustDomain: string
  readonly url: string
}

function files(directory: string) {
  return {
    certificate: join(directory, 'broker.crt'),
    key: join(directory, 'broker.key'),
    /** The key of a renewal that has begun. */
    nextKey: join(directory, 'broker.key.next'),
    ca: join(directory, 'ca.crt'),
    names: join(directory, 'broker.json'),
  }
}

/**
 * The credential in the directory; null before the first enrollment is complete. Ends a renewal that was interrupted
 * between certificate and key.
 * @throws MusterError key_file_insecure, directory_unusable
 */
export function readCredential(directory: string): Credential | null {
  const paths = files(directory)
  if (!existsSync(paths.certificate)) return null
  try {
    const certificate = readFileSync(paths.certificate, 'utf8')
    const leaf = new X509Certificate(certificate)
    const names = JSON.parse(readFileSync(paths.names, 'utf8')) as Names // written by `store`, with the certificate
    return {
      ...names,
      certificate,
      key: keyOf(leaf, paths),
      ca: readFileSync(paths.ca, 'utf8'),
      notBefore: leaf.validFromDate.getTime(),
      notAfter: leaf.validToDate.getTime(),
    }
  } catch (cause) {
    if (cause instanceof MusterError) throw cause
    throw new MusterError(
      'directory_unusable',
      `Cannot use the credential in "${directory}": ${(cause as Error).message}; fix: remove broker.crt and start with a new invitation (\`muster broker invite\`)`,
      { cause },
    )
  }
}

/** A renewal replaces the certificate first; when the key did not follow, it does now. */
function keyOf(leaf: X509Certificate, paths: ReturnType<typeof files>): string {
  const key = readSecretFile(paths.key).toString('utf8')
  if (leaf.checkPrivateKey(readPrivateKey(key))) return key
  const next = existsSync(paths.nextKey) ? readSecretFile(paths.nextKey).toString('utf8') : ''
  if (next === '' || !leaf.checkPrivateKey(readPrivateKey(next))) {
    throw new Error('broker.key does not belong to broker.crt')
  }
  takeNextKey(paths)
  return next
}

function takeNextKey(paths: ReturnType<typeof files>): void {
  renameSync(paths.nextKey, paths.key)
  syncDirectory(join(paths.key, '..'))
}

/** @throws MusterError config_invalid when the file is no invitation */
export function readInvitation(path: string): Invitation {
  try {
    const invitation: unknown = JSON.parse(readFileSync(path, 'utf8'))
    if (invitationSchema.Check(invitation)) return invitation
  } catch {
    // said below, for a file that cannot be read and for one that is something else
  }
  throw new MusterError(
    'config_invalid',
    `Cannot use the invitation "${path}": it is not a file of \`muster broker invite --json\``,
  )
}

export interface EnrollmentRequest {
  readonly directory: string
  readonly invitation: Invitation
  /** Names for the server certificate. */
  readonly hosts: readonly string[]
  /** Without a certificate of its own, trusting the invitation's root. */
  readonly client: Pick<JsonClient, 'send'>
}

/**
 * Turns an invitation into a credential. The key is on disk before the request leaves, and a repetition uses it again,
 * so neither a crash nor a lost reply costs an invitation.
 * @throws MusterError token_*, invalid_request, unreachable, key_file_insecure, check_failed
 */
export async function enrollBroker(request: EnrollmentRequest): Promise<Credential> {
  const { directory, invitation, hosts, client } = request
  const paths = files(directory)
  const key = keptKey(paths.key)
  const { pem: csr } = await createCsr({ key: readPrivateKey(key) })
  const reply = await client.send<BrokerCertificateReply>('POST', '/v1/brokers/enroll', {
    token: invitation.token,
    csr,
    hosts,
  })
  const certificate = checkedPair(reply, { key, roots: invitation.root })
  const { broker, trustDomain } = reply
  writeFileDurably(paths.ca, rootsOf(reply, invitation.root))
  writeFileDurably(
    paths.names,
    `${JSON.stringify({ broker, trustDomain, url: invitation.url } satisfies Names)}\n`,
  )
  writeFileDurably(paths.certificate, certificate) // the last one: it says that the others are there
  return reread(directory)
}

/** The next certificate, with a new key; from the first file to the last the directory holds a pair that works. */
export async function renewCredential(request: {
  readonly directory: string
  readonly credential: Credential
  readonly hosts: readonly string[]
  readonly client: Pick<JsonClient, 'send'>
}): Promise<Credential> {
  const { directory, credential, hosts, client } = request
  const paths = files(directory)
  const key = keptKey(paths.nextKey)
  const { pem: csr } = await createCsr({ key: readPrivateKey(key) })
  const reply = await client.send<BrokerCertificateReply>('POST', '/v1/brokers/renew', { csr, hosts })
  const certificate = checkedPair(reply, { key, roots: credential.ca })
  writeFileDurably(paths.ca, rootsOf(reply, credential.ca))
  writeFileDurably(paths.certificate, certificate)
  takeNextKey(paths)
  return reread(directory)
}

/** True from 2/3 of its life on, and when it does not name every host. */
export function isRenewalDue(credential: Credential, hosts: readonly string[], now: number): boolean {
  const { notBefore, notAfter, certificate } = credential
  const leaf = new X509Certificate(certificate)
  const isNamed = (host: string) =>
    (isIP(host) === 0 ? leaf.checkHost(host) : leaf.checkIP(host)) !== undefined
  return !hosts.every(isNamed) || now >= notBefore + (notAfter - notBefore) * RENEW_AT
}

/** A key that was written for a request whose reply is missing, or a new one. */
function keptKey(path: string): string {
  if (existsSync(path)) {
    const kept = readSecretFile(path).toString('utf8')
    if (kept !== '') return kept
    rmSync(path)
  }
  const key = privateKeyPem(generateKey())
  writeSecretFile(path, key)
  return key
}

/** Leaf and what is above it, when they chain to a root that was handed over and belong to the key. */
function checkedPair(reply: BrokerCertificateReply, { key, roots }: { key: string; roots: string }): string {
  const leaf = new X509Certificate(reply.certificate)
  const above = reply.chain.filter((pem) => !isSelfSigned(new X509Certificate(pem)))
  const anchors = splitPem(roots).map((pem) => new X509Certificate(pem))
  const chain = above.map((pem) => new X509Certificate(pem))
  const isOurs = leaf.checkPrivateKey(readPrivateKey(key)) && reachesAnchor([leaf, ...chain], anchors)
  if (!isOurs) {
    throw new MusterError(
      'check_failed',
      'Cannot use the certificate that the registry sent: it does not chain to the root of the invitation, or is for another key',
    )
  }
  return [reply.certificate, ...above].map((pem) => `${pem.trimEnd()}\n`).join('')
}

/** Each is signed by the next one, up to one that an anchor has signed; of the CAs at least one is needed. */
function reachesAnchor(
  [leaf, ...cas]: readonly X509Certificate[],
  anchors: readonly X509Certificate[],
): boolean {
  let below = leaf
  for (const ca of cas) {
    if (below?.verify(ca.publicKey) !== true) return false
    if (anchors.some((anchor) => ca.verify(anchor.publicKey))) return true
    below = ca
  }
  return false
}

function isSelfSigned(certificate: X509Certificate): boolean {
  return certificate.checkIssued(certificate) && certificate.verify(certificate.publicKey)
}

/** The registry says which roots are trusted now, over a connection that one of the known ones vouches for. */
function rootsOf({ roots }: BrokerCertificateReply, known: string): string {
  return roots === undefined || roots.length === 0 ? known : roots.join('')
}

function reread(directory: string): Credential {
  const credential = readCredential(directory)
  if (credential === null) throw new TypeError('The credential was stored and is not there')
  return credential
}
