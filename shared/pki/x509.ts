/**
 * The only importer of @peculiar/x509, for making requests. Its constructors guess the format of what they are
 * given, so nothing that came from outside may reach them: requests are read by `enrollment/ca/check-csr.ts`,
 * certificates by `certificate.ts`.
 */
import 'reflect-metadata'
import { createPublicKey, type KeyObject, webcrypto } from 'node:crypto'
import * as x509 from '@peculiar/x509'
import { derToPem } from './pem.ts'

export interface CsrRequest {
  /** Private key: P-256, P-384, RSA or Ed25519. */
  readonly key: KeyObject
  readonly commonName?: string
  /** SAN entries of type URI. */
  readonly uris?: readonly string[]
  /** SAN entries of type DNS. */
  readonly dnsNames?: readonly string[]
  readonly isCa?: boolean
  readonly keyCertSign?: boolean
  /** Extended key usages, dotted. */
  readonly usages?: readonly string[]
  readonly challengePassword?: string
}

/** Makes a PKCS#10 request (RFC 2986). Wishes that enrollment refuses can be expressed as well. */
export async function createCsr(request: CsrRequest): Promise<{ der: Buffer; pem: string }> {
  const algorithm = webCryptoAlgorithm(request.key)
  const csr = await x509.Pkcs10CertificateRequestGenerator.create(
    {
      ...(request.commonName === undefined ? {} : { name: [{ CN: [request.commonName] }] }),
      keys: {
        privateKey: request.key.toCryptoKey(algorithm, true, ['sign']),
        publicKey: createPublicKey(request.key).toCryptoKey(algorithm, true, ['verify']),
      },
      signingAlgorithm: algorithm,
      extensions: extensionsOf(request),
      attributes:
        request.challengePassword === undefined
          ? []
          : [new x509.ChallengePasswordAttribute(request.challengePassword)],
    },
    webcrypto as never, // the library names the browser's type; Node's has all that it uses
  )
  const der = Buffer.from(csr.rawData)
  return { der, pem: derToPem(der, 'CERTIFICATE REQUEST') }
}

function webCryptoAlgorithm(key: KeyObject): { name: string; namedCurve?: string; hash?: string } {
  if (key.asymmetricKeyType === 'ed25519') return { name: 'Ed25519' }
  if (key.asymmetricKeyType === 'rsa') return { name: 'RSASSA-PKCS1-v1_5', hash: 'SHA-256' }
  return key.asymmetricKeyDetails?.namedCurve === 'secp384r1'
    ? { name: 'ECDSA', namedCurve: 'P-384', hash: 'SHA-384' }
    : { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' }
}

function extensionsOf(request: CsrRequest): x509.Extension[] {
  const names: x509.JsonGeneralNames = [
    ...(request.uris ?? []).map((value) => ({ type: 'url' as const, value })),
    ...(request.dnsNames ?? []).map((value) => ({ type: 'dns' as const, value })),
  ]
  return [
    ...(names.length > 0 ? [new x509.SubjectAlternativeNameExtension(names)] : []),
    ...(request.isCa === true ? [new x509.BasicConstraintsExtension(true)] : []),
    ...(request.keyCertSign === true
      ? [new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign, true)]
      : []),
    ...(request.usages ? [new x509.ExtendedKeyUsageExtension([...request.usages])] : []),
  ]
}
